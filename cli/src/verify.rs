//! `ane-matmul verify`.

use std::time::Duration;

use ane_matmul::evidence::{Load, Receipt, Statement, Witness, verify};
use ane_matmul::{BackendId, Device, ElementType, ElementTypes, MatMul};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use crate::args::{Precision, VerifyArgs, backend_id};
use crate::failure::{Failure, Output};
use crate::machine::Machine;
use crate::output::{keep_ticking, note, print, print_json};

/// Longer than any engine takes to settle.
const MOST_SECONDS: f64 = 3600.0;

pub(crate) fn run(args: &VerifyArgs) -> Output {
    if !(args.seconds > 0.0 && args.seconds <= MOST_SECONDS) {
        return Err(Failure::new(format!(
            "--seconds: expected more than 0 and at most {MOST_SECONDS}, got {}",
            args.seconds
        )));
    }
    let backends = crate::backends()?;
    let id = args.backend.as_deref().map_or(BackendId::AUTO, backend_id);
    let required: Device = args.require.as_deref().unwrap_or("unknown").parse().map_err(Failure::new)?;
    let shape = args.shape;
    let describe = |device: Device| -> Output<_> {
        let types = types(args.precision, device);
        let product = MatMul::builder(shape.m, shape.n, shape.k).types(types).build()?;
        Ok((product, args.threads.options().device(device)))
    };
    let (product, options) = match &args.device {
        Some(name) => describe(name.parse().map_err(Failure::new)?)?,
        None => {
            let wanted = describe(default_device(&id, args.precision, required))?;
            // What nobody takes is not asked for: the receipt says what happens without.
            if backends.supports(&id, &wanted.0, &wanted.1).is_ok() {
                wanted
            } else {
                if wanted.1.device != Device::Unknown {
                    note(format_args!("no backend here takes the {} as a candidate", wanted.1.device));
                }
                describe(Device::Unknown)?
            }
        }
    };
    let load = Load::default().window(Duration::from_secs_f64(args.seconds));

    let progress = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    progress.set_message(format!("running {product} on {id}"));
    progress.set_style(
        indicatif::ProgressStyle::with_template("{spinner} {wide_msg} [{elapsed}]").map_err(Failure::new)?,
    );
    keep_ticking(&progress);
    let receipt = verify(&backends, &id, &product, &options, &load);
    progress.finish_and_clear();
    let receipt = receipt?;
    if args.json {
        print_json(&to_json(&receipt, required))?;
    } else {
        print(receipt.to_string().trim_end())?;
    }
    Ok(receipt.require(required)?)
}

/// Whoever wants it proved that the Neural Engine works asks for it.
fn default_device(id: &BackendId, precision: Option<Precision>, required: Device) -> Device {
    let wanted = *id == BackendId::MPSGRAPH || (*id == BackendId::AUTO && required == Device::NeuralEngine);
    let candidate = matches!(precision, None | Some(Precision::F16));
    if wanted && candidate { Device::NeuralEngine } else { Device::Unknown }
}

/// Only products that are f16 throughout are candidates for the Neural Engine.
fn types(precision: Option<Precision>, device: Device) -> ElementTypes {
    match (precision, device) {
        (None | Some(Precision::F16), Device::NeuralEngine) => ElementTypes::uniform(ElementType::F16),
        (None, _) => ElementTypes::F32,
        (Some(precision), _) => precision.types(),
    }
}

fn to_json(receipt: &Receipt, required: Device) -> Value {
    let witnesses: Vec<Value> = receipt.witnesses.iter().map(witness_json).collect();
    let name = |device: Device| (device != Device::Unknown).then(|| device.name());
    json!({
        "machine": Machine::new().to_json(),
        "backend": receipt.backend.as_str(),
        "device_name": receipt.device_name,
        "product": receipt.product,
        "runs": receipt.runs,
        "requested": receipt.requested.name(),
        "observed": receipt.verdict.observed.name(),
        "confidence": receipt.verdict.confidence.name(),
        "reasons": receipt.verdict.reasons,
        "required": name(required),
        "proved": name(required).map(|_| receipt.require(required).is_ok()),
        "witnesses": witnesses,
    })
}

fn witness_json(witness: &Witness) -> Value {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut figures = match witness {
        Witness::Engine { observed } => json!({ "observed": observed.name() }),
        Witness::CpuTime { cpu, wall, needed } => json!({
            "cpu_ns": ns(*cpu),
            "wall_ns": ns(*wall),
            "needed_ns": needed.map(ns),
        }),
        Witness::DeviceTime { device, control, wall } => json!({
            "device_ns": ns(*device),
            "control_ns": control.map(ns),
            "wall_ns": ns(*wall),
        }),
        Witness::Energy { device, idle_watts, control_watts, load_watts } => json!({
            "device": device.name(),
            "idle_watts": idle_watts,
            "control_watts": control_watts,
            "load_watts": load_watts,
        }),
        Witness::CandidateTime { with, without } => json!({
            "with_ns": [ns(with.lower), ns(with.median), ns(with.upper)],
            "without_ns": [ns(without.lower), ns(without.median), ns(without.upper)],
        }),
        Witness::Absent { reason, .. } => json!({ "absent": reason }),
        _ => json!({}),
    };
    figures["witness"] = witness.kind().into();
    figures["says"] = match witness.says() {
        Statement::Nothing => Value::Null,
        says => says.to_string().into(),
    };
    figures
}

#[cfg(test)]
mod tests {
    use ane_matmul::evidence::Quartiles;

    use super::*;

    #[test]
    fn the_neural_engine_gets_f16_throughout_and_nothing_else_is_asked_of_it() {
        let graph = BackendId::MPSGRAPH;
        let device = |id: &BackendId, precision| default_device(id, precision, Device::NeuralEngine);
        assert_eq!(device(&graph, None), Device::NeuralEngine);
        assert_eq!(device(&graph, Some(Precision::F32)), Device::Unknown);
        assert_eq!(device(&BackendId::CPU, None), Device::Unknown);
        assert_eq!(device(&BackendId::AUTO, None), Device::NeuralEngine);
        for required in [Device::Unknown, Device::Cpu] {
            assert_eq!(default_device(&graph, None, required), Device::NeuralEngine);
            assert_eq!(default_device(&BackendId::AUTO, None, required), Device::Unknown);
        }
        assert_eq!(types(None, Device::NeuralEngine), ElementTypes::uniform(ElementType::F16));
        assert_eq!(types(Some(Precision::F16), Device::Gpu), ElementTypes::F16);
        assert_eq!(types(None, Device::Gpu), ElementTypes::F32);
        // Refused by the backend, with the reason.
        assert_eq!(types(Some(Precision::F32), Device::NeuralEngine), ElementTypes::F32);
    }

    #[test]
    fn silence_is_null_in_json() {
        let energy = Witness::Energy {
            device: Device::NeuralEngine,
            idle_watts: 0.0,
            control_watts: None,
            load_watts: 0.0,
        };
        assert_eq!(
            witness_json(&energy),
            json!({ "witness": "energy", "says": null, "device": "neural-engine", "idle_watts": 0.0, "control_watts": null, "load_watts": 0.0 })
        );
    }

    #[test]
    fn every_witness_has_its_figures_in_json() {
        let second = Duration::from_secs(1);
        let quartiles = Quartiles { lower: second, median: 2 * second, upper: 3 * second };
        let cases = [
            (Witness::Engine { observed: Device::Cpu }, json!({ "observed": "cpu" })),
            (
                Witness::CpuTime { cpu: second, wall: 2 * second, needed: Some(3 * second) },
                json!({
                    "cpu_ns": 1_000_000_000u64,
                    "wall_ns": 2_000_000_000u64,
                    "needed_ns": 3_000_000_000u64,
                }),
            ),
            (
                Witness::DeviceTime { device: second, control: None, wall: 2 * second },
                json!({ "device_ns": 1_000_000_000u64, "control_ns": null, "wall_ns": 2_000_000_000u64 }),
            ),
            (
                Witness::CandidateTime { with: quartiles, without: quartiles },
                json!({
                    "with_ns": [1_000_000_000u64, 2_000_000_000u64, 3_000_000_000u64],
                    "without_ns": [1_000_000_000u64, 2_000_000_000u64, 3_000_000_000u64],
                }),
            ),
            (Witness::Absent { kind: "energy", reason: "none".into() }, json!({ "absent": "none" })),
        ];
        for (witness, mut expected) in cases {
            expected["witness"] = witness.kind().into();
            let mut figures = witness_json(&witness);
            expected["says"] = figures["says"].take();
            figures["says"] = expected["says"].clone();
            assert_eq!(figures, expected);
        }
    }
}
