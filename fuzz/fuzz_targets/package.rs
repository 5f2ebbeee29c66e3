//! Whatever lies where a compiled product is kept, the product is right: loaded, or compiled again.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use ane_matmul::{
    BackendId, Backends, CompileOptions, Inputs, MatMul, MatMulWithWeights, ShimLibrary, Tensor, Weights,
};
use ane_matmul_shims::linked_reference;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

/// What is changed of a package that was saved.
#[derive(Debug, Arbitrary)]
enum Change {
    Manifest(Vec<u8>),
    Product(Vec<u8>),
    /// Bytes at an offset of the manifest or of the product.
    Patch {
        manifest: bool,
        offset: u16,
        bytes: Vec<u8>,
    },
    /// A whole package as somebody might forge it: with a manifest that fits.
    Forge(Vec<u8>),
    Cut {
        manifest: bool,
        length: u16,
    },
    Remove {
        manifest: bool,
    },
    MoreFile(u8),
    Directory,
    Nothing,
}

struct Fixture {
    backends: Backends,
    id: BackendId,
    product: MatMulWithWeights,
    options: CompileOptions,
    place: PathBuf,
    /// The manifest and the product as they were saved.
    saved: [Vec<u8>; 2],
}

const FILES: [&str; 2] = ["manifest.txt", "product.mpsgraphpackage"];

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        // SAFETY: the table is a constant of this program.
        let shim = unsafe { ShimLibrary::from_table(linked_reference(), "reference") }.expect("a good shim");
        let mut backends = Backends::new();
        let id = backends.add(shim).expect("a new name");
        let directory = ane_matmul_fuzz::place().join("packages");
        let weights = Weights::from_tensor(Tensor::filled(4, 3, 2f32).expect("a small tensor"));
        let product = MatMul::builder(2, 3, 4).with_weights(&weights).expect("a small product");
        let options = CompileOptions::default().packages(&directory);
        backends.compile(&id, &product, &options).expect("a product");
        let place = fs::read_dir(&directory)
            .expect("a directory")
            .next()
            .expect("a package")
            .expect("an entry")
            .path();
        let saved = FILES.map(|file| fs::read(place.join(file)).expect("a file of the package"));
        Fixture { backends, id, product, options, place, saved }
    })
}

fn apply(fixture: &Fixture, change: &Change) {
    let path = |manifest: bool| fixture.place.join(FILES[usize::from(!manifest)]);
    let now = |manifest: bool| fs::read(path(manifest)).unwrap_or_default();
    let write = |manifest: bool, bytes: &[u8]| {
        let _ = fs::write(path(manifest), bytes);
    };
    match change {
        Change::Manifest(bytes) => write(true, bytes),
        Change::Product(bytes) => write(false, bytes),
        Change::Patch { manifest, offset, bytes } => {
            let mut text = now(*manifest);
            let start = usize::from(*offset) % (text.len() + 1);
            let end = (start + bytes.len()).min(text.len());
            text.splice(start..end, bytes.iter().copied());
            write(*manifest, &text);
        }
        Change::Forge(bytes) => {
            let text = String::from_utf8_lossy(&fixture.saved[0]).into_owned();
            let key = text.split("\nfiles\n").next().expect("the key");
            let line = format!("{} {} \n", blake3(bytes), bytes.len());
            write(true, format!("{key}\nfiles\n{line}").as_bytes());
            write(false, bytes);
        }
        Change::Cut { manifest, length } => {
            let text = now(*manifest);
            write(*manifest, &text[..usize::from(*length).min(text.len())]);
        }
        Change::Remove { manifest } => {
            let _ = fs::remove_file(path(*manifest));
        }
        Change::MoreFile(name) => {
            let _ = fs::write(fixture.place.join(format!("more-{name}")), "more");
        }
        Change::Directory => {
            let _ = fs::remove_file(path(false));
            let _ = fs::create_dir(path(false));
            let _ = fs::write(path(false).join("inner"), "inner");
        }
        Change::Nothing => {}
    }
}

fn blake3(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fuzz_target!(|changes: Vec<Change>| {
    let fixture = fixture();
    let _ = fs::remove_dir_all(&fixture.place);
    fs::create_dir(&fixture.place).expect("the package's place");
    for (file, bytes) in FILES.into_iter().zip(&fixture.saved) {
        fs::write(fixture.place.join(file), bytes).expect("a file of the package");
    }
    for change in &changes {
        apply(fixture, change);
    }
    let Fixture { backends, id, product, options, .. } = fixture;
    let x = Tensor::filled(2, 4, 1f32).expect("a small tensor");
    for start in 0..2 {
        let compiled = backends.compile(id, product, options).expect("loaded, or compiled again");
        let report = compiled.report();
        assert!(start == 0 || report.from_package, "what was made again is not found: {report:?}");
        let forged = changes.iter().any(|change| matches!(change, Change::Forge(_)));
        // Whoever may write to the directory forges a package's constants, as SECURITY.md says.
        if !forged {
            let y = compiled.run_to_tensor(&Inputs::new(&x)).expect("a run");
            assert_eq!(y.data(), [8.0; 6]);
        }
    }
});
