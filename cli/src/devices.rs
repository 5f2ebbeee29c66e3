//! `ane-matmul devices`.

use std::fmt::Write as _;

use ane_matmul::{BackendId, BackendInfo, BackendStatus, ShimDevice};
use serde_json::{Value, json};

use crate::args::DevicesArgs;
use crate::failure::Output;
use crate::machine::Machine;
use crate::output::{print, print_json};

pub(crate) fn run(args: &DevicesArgs) -> Output {
    let machine = Machine::new();
    let shim = crate::shim()?;
    let backends = crate::backends_with(shim.clone())?.available();
    let others = shim.and_then(|shim| shim.devices().ok()).unwrap_or_default();
    let others = others.into_iter().filter(|device| backends.iter().all(|known| known.id != device.id));
    let others: Vec<_> = others.collect();
    if args.json {
        let mut list: Vec<Value> = backends.iter().map(status_json).collect();
        list.extend(others.iter().map(other_json));
        return print_json(&json!({ "machine": machine.to_json(), "backends": list }));
    }
    let mut text = String::new();
    let sets = machine.instruction_sets.join(" ");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "CPU: {}", machine.cpu);
    let _ = writeln!(text, "cores: {} ({} threads allowed)", machine.cores, machine.allowed_threads);
    let _ = writeln!(text, "instruction sets: {}\n", if sets.is_empty() { "none detected" } else { &sets });
    for BackendStatus { id, state, .. } in &backends {
        let _ = match state {
            Ok(info) => writeln!(text, "{id:<12} {}", info_text(info)),
            Err(reason) => writeln!(text, "{id:<12} not here: {reason}"),
        };
    }
    for device in &others {
        let _ = writeln!(text, "{:<12} not chosen: {}; {}", device.id, device.name, how_to_choose(device));
    }
    print(text.trim_end())
}

fn how_to_choose(device: &ShimDevice) -> String {
    format!("set ANE_MATMUL_SHIM_DEVICE={}", device.index)
}

/// A device of the shim's that is no backend of this run.
fn other_json(device: &ShimDevice) -> Value {
    json!({
        "backend": device.id.as_str(),
        "available": false,
        "device": device.kind.name(),
        "device_name": device.name,
        "reason": how_to_choose(device),
    })
}

fn info_text(info: &BackendInfo) -> String {
    let double = if info.is_test_double { " (a test double, not hardware)" } else { "" };
    format!("{}; on {}, {}{double}", info.description, info.device, info.device_name)
}

fn status_json(status: &BackendStatus) -> Value {
    match &status.state {
        Ok(info) => info_json(&status.id, info),
        Err(reason) => json!({ "backend": status.id.as_str(), "available": false, "reason": reason }),
    }
}

/// A backend that is here.
pub(crate) fn info_json(id: &BackendId, info: &BackendInfo) -> Value {
    json!({
        "backend": id.as_str(),
        "available": true,
        "description": info.description,
        "device": info.device.name(),
        "device_name": info.device_name,
        "test_double": info.is_test_double,
        "max_queue_depth": info.max_queue_depth,
        "copies_host_operands": info.copies_host_operands,
    })
}
