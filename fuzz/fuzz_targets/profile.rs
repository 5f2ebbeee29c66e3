//! Whatever a profile's file holds is a profile or an error; a profile is saved, loaded and used.
#![no_main]

use ane_matmul::{Backends, CompileOptions, MachineKey, MatMul, Profile, Threads};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = ane_matmul_fuzz::file("in.json", bytes);
    let Ok(profile) = Profile::load(&path) else { return };
    let copy = ane_matmul_fuzz::place().join("out.json");
    profile.save(&copy).expect("a profile is saved");
    assert_eq!(Profile::load(&copy).expect("what was saved is loaded"), profile);

    let product = MatMul::builder(8, 40, 24).build_constant_b().expect("a small product");
    let options = CompileOptions::default().threads(Threads::ONE);
    let mut backends = Backends::new();
    backends.set_profile(Some(profile.clone()));
    let explanation = backends.explain(product.product(), &options);
    assert!(!format!("{explanation:?}").is_empty());
    // As if it had been measured here: else its figures are not used.
    let mut here = Profile::new(MachineKey::here());
    for series in profile.series() {
        here.add_series(series.clone()).expect("a series that was loaded");
    }
    assert_eq!(here.series(), profile.series());
    let (profile, difference) = here.for_this_machine();
    assert_eq!(difference, None);
    backends.set_profile(Some(profile));
    for (m, n, k) in [(1, 1, 1), (8, 40, 24), (4096, 4096, 4096), (usize::MAX >> 40, 1, 1)] {
        let Ok(product) = MatMul::new(m, n, k) else { continue };
        let explanation = backends.explain(&product, &options);
        assert!(!format!("{explanation:?}").is_empty());
    }
});
