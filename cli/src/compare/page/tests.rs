//! What the page says of figures that are given. How it looks is checked in a browser.

use std::time::{Duration, SystemTime};

use ane_matmul::BackendId;

use super::{count, render};
use crate::args::{Precision, Shape};
use crate::compare::Absent;
use crate::compare::check::Check;
use crate::compare::fixture::{comparison, timing};
use crate::compare::measure::Timing;
use crate::compare::operands::Kind;
use crate::compare::report::Comparison;

fn page(comparison: &Comparison) -> String {
    render(comparison, SystemTime::UNIX_EPOCH + Duration::from_secs(86_400))
}

fn plots(page: &str) -> usize {
    page.matches("<svg class=\"plot\"").count()
}

#[test]
fn two_backends_and_sizes_have_every_part() {
    let mut figures =
        comparison(&[(256, "cpu", 1e5), (256, "gpu", 4e5), (512, "cpu", 8e5), (512, "gpu", 2e5)]);
    for timing in &mut figures.measured.timings {
        if timing.backend.id.as_str() == "gpu" {
            timing.compile_ns = 200_000_000;
        }
    }
    let page = page(&figures);
    assert_eq!(plots(&page), 3);
    for part in [
        "cpu wins at 256, gpu from 512 on",
        "id=\"speed\"",
        "id=\"ratio\"",
        "id=\"amortization\"",
        "id=\"measurements\"",
        "id=\"compilation\"",
        "id=\"evidence\"",
        "id=\"machine\"",
        "Fri, 02 Jan 1970 00:00:00 GMT",
        env!("CARGO_PKG_VERSION"),
        // 200 ms repaid by 0.6 ms a run, after the first.
        "335 runs and more",
        "<td>never</td>",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert_eq!(page.matches("class=\"band\"").count(), 1);
}

#[test]
fn what_stays_on_the_device_stands_beside_what_does_not() {
    let times =
        [(256, "gpu", 3e5), (256, "gpu, resident", 1e5), (512, "gpu", 6e5), (512, "gpu, resident", 2e5)];
    let mut figures = comparison(&times);
    figures.kind.resident = true;
    let page = page(&figures);
    assert!(page.contains("<b>gpu, resident</b> is the fastest at 2 of 2 products"), "{page}");
    // In the plots of speed and ratio, and in that of amortization.
    assert_eq!(page.matches("data-series=\"gpu, resident\"").count(), 3, "{page}");
    assert!(page.contains("Those of resident rows stay on the device."), "{page}");
}

#[test]
fn nothing_of_a_value_is_taken_for_markup() {
    const HOSTILE: &str = "<script>alert('x')</script>\"'&";
    let mut figures = comparison(&[(64, HOSTILE, 1e4), (64, "cpu", 2e4), (128, "cpu", 2e4)]);
    figures.machine.cpu = HOSTILE.into();
    figures.machine.os = HOSTILE.into();
    figures.measured.notes.push(HOSTILE.into());
    let shape = Shape { m: 1, n: 2, k: 3 };
    figures.timed = vec![(
        BackendId::CPU,
        ane_matmul::Backends::new().info(&BackendId::CPU).expect("the CPU is always here"),
    )];
    figures.timed[0].1.description = HOSTILE.into();
    figures.timed[0].1.device_name = HOSTILE.into();
    figures.measured.refused.push((BackendId::CPU, shape, HOSTILE.into()));
    let absent = Absent { backend: BackendId::new(HOSTILE), reason: HOSTILE.into(), is_test_double: false };
    figures.unavailable.push(absent);
    let page = page(&figures);
    assert!(!page.contains("<script"), "{page}");
    assert!(!page.contains("alert('x')</script>\"'&"), "{page}");
    assert!(page.matches("&lt;script&gt;alert(").count() >= 12, "{page}");
}

#[test]
fn one_backend_is_compared_with_nothing() {
    let page = page(&comparison(&[(64, "cpu", 1e4), (128, "cpu", 5e4)]));
    assert_eq!(plots(&page), 2);
    assert!(!page.contains("id=\"ratio\""));
    assert!(page.contains("It is compared with nothing"));
    assert!(!page.contains("class=\"winner\""));
    assert!(page.contains("any number of runs"));
}

#[test]
fn auto_has_its_lines_and_competes_with_nobody() {
    let mut figures =
        comparison(&[(64, "cpu", 1e4), (64, "auto", 9e3), (128, "cpu", 5e4), (128, "auto", 4e4)]);
    for timing in &mut figures.measured.timings {
        if timing.backend.id == BackendId::AUTO {
            timing.stands_for = Some(BackendId::CPU);
        }
    }
    let page = page(&figures);
    // No ratio to itself.
    assert_eq!(plots(&page), 2);
    for part in [
        "One backend was timed: <b>cpu</b>",
        "<b>auto</b> stands for cpu at 2 products",
        "<td>stands for cpu</td>",
        "any number of runs",
        "auto (cpu), 64x64x64",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    let amortization = &page[page.find("id=\"amortization\"").unwrap()..];
    let amortization = &amortization[..amortization.find("</figure>").unwrap()];
    assert!(!amortization.contains("auto"), "{amortization}");
    figures.measured.timings.retain(|timing| !timing.is_contender());
    let page = render(&figures, SystemTime::UNIX_EPOCH);
    assert!(page.contains("auto alone was timed") && !page.contains("Nothing was timed"), "{page}");
    assert_eq!(plots(&page), 1);
}

#[test]
fn the_page_says_what_was_measured_and_how_it_was_checked() {
    let mut figures = comparison(&[(64, "cpu", 1e4), (2048, "cpu", 5e4)]);
    figures.timed = vec![(BackendId::CPU, ane_matmul::Backends::new().info(&BackendId::CPU).unwrap())];
    figures.kind = Kind { precision: Precision::F16, constant_b: true, resident: false };
    figures.measured.timings[1].check = Check::Projections;
    let page = page(&figures);
    for part in [
        "<p>f16, B constant, measured",
        "every element against a float64 reference, or, where large, by random projections",
        "A and C are in host memory before and after every run. Winners, crossover",
        "<td>projections</td><td class=\"number\">-</td><td class=\"number\">-</td>",
        "<td>reference</td><td class=\"number\">0.0e0</td><td class=\"number\">1.0e0</td>",
        "1 product within the error bound",
        "1 product found right by random projections",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
}

#[test]
fn one_size_draws_points_and_knows_no_crossover() {
    let page = page(&comparison(&[(64, "cpu", 1e4), (64, "blas", 5e4)]));
    assert_eq!(plots(&page), 3);
    assert!(page.contains("not known, it takes square products of two sizes"));
    let speed = &page[page.find("id=\"speed\"").unwrap()..page.find("id=\"ratio\"").unwrap()];
    let plot = &speed[speed.find("<svg class=\"plot\"").unwrap()..];
    assert!(!plot.contains("class=\"line\""), "{plot}");
    assert_eq!(plot.matches("class=\"marker\"").count(), 2);
}

#[test]
fn a_product_without_work_has_no_place_in_a_plot() {
    let mut figures = comparison(&[(64, "cpu", 1e4)]);
    figures.measured.timings.push(Timing { gflops: 0.0, ..timing(0, "cpu", 0.0) });
    let page = page(&figures);
    assert_eq!(plots(&page), 2);
    assert!(page.contains("0x0x0"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn nothing_timed_says_why() {
    let mut figures = comparison(&[]);
    let double = "a test double of hardware: its times mean nothing";
    figures.unavailable =
        vec![Absent { backend: BackendId::METAL, reason: double.into(), is_test_double: true }];
    let page = page(&figures);
    assert_eq!(plots(&page), 0);
    assert!(page.contains("Nothing was timed."));
    assert!(page.contains("<td>test double</td><td>nothing</td><td>nothing</td>"), "{page}");
    assert!(page.contains(double));
}

#[test]
fn the_page_asks_for_nothing_from_elsewhere() {
    let page = page(&comparison(&[(64, "cpu", 1e4), (64, "blas", 5e4), (128, "cpu", 1e5)]));
    for address in ["http:", "https:", "//", "url(", "@import", "<script", "src="] {
        assert!(!page.contains(address), "{address}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn thousands_stand_apart() {
    assert_eq!(
        [0, 12, 123, 1234, 123_456, 1_234_567].map(count),
        ["0", "12", "123", "1,234", "123,456", "1,234,567"]
    );
}
