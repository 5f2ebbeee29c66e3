//! Submissions, and operands that stay on the device, on the reference shim, whose memory is the host's or apart from it.
//! A program of its own: the shim reads which from the environment.

use ane_matmul::{Backends, CompileOptions, RefusalReason, ShimLibrary};
use ane_matmul_conformance::{List, Suite, some};
use ane_matmul_shims::REFERENCE;

#[test]
fn the_reference_shim_conforms_on_memory_of_its_own_too() {
    for memory in ["", "device"] {
        // SAFETY: this program has one test, so no other thread reads the environment.
        unsafe { std::env::set_var("ANE_REFERENCE_MEMORY", memory) };
        // SAFETY: the library is built from this repository.
        let shim = unsafe { ShimLibrary::open(REFERENCE) }.expect("a good shim");
        let mut backends = Backends::new();
        let id = backends.add(shim).expect("a new name");
        assert_eq!(backends.info(&id).unwrap().copies_host_operands, memory == "device");
        let options = CompileOptions::default();
        for list in [List::F32, List::Asynchronous, List::Resident] {
            let (start, cases) = (std::time::Instant::now(), some(list.cases(), 0, 3));
            let suite = Suite::new(&backends, &id, &options).way(list.way());
            // It runs f32 alone.
            let summary = suite.check(&cases, &[RefusalReason::ElementType]);
            assert_eq!(summary.passed + summary.refused.len(), cases.len());
            assert!(summary.passed > cases.len() / 2);
            println!("{list}: {} cases passed in {:?}", summary.passed, start.elapsed());
        }
    }
}
