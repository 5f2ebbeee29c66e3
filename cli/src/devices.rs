//! `ane-matmul devices`.

use std::fmt::Write as _;

use ane_matmul::{BackendInfo, BackendStatus};
use serde_json::{Value, json};

use crate::args::DevicesArgs;
use crate::failure::Output;
use crate::machine::Machine;
use crate::output::{print, print_json};

pub(crate) fn run(args: &DevicesArgs) -> Output {
    let machine = Machine::new();
    let backends = crate::backends()?.available();
    if args.json {
        let list: Vec<Value> = backends.iter().map(status_json).collect();
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
    print(text.trim_end())
}

fn info_text(info: &BackendInfo) -> String {
    let double = if info.is_test_double { " (a test double, not hardware)" } else { "" };
    format!("{}; on {}, {}{double}", info.description, info.device, info.device_name)
}

fn status_json(status: &BackendStatus) -> Value {
    match &status.state {
        Ok(info) => json!({
            "backend": status.id.as_str(),
            "available": true,
            "description": info.description,
            "device": info.device.name(),
            "device_name": info.device_name,
            "test_double": info.is_test_double,
        }),
        Err(reason) => json!({ "backend": status.id.as_str(), "available": false, "reason": reason }),
    }
}
