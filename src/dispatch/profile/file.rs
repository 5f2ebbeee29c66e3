//! The file format: JSON, version 2. Everything read is checked before it is believed.

use serde::{Deserialize, Serialize};

use super::{MAXIMUM_QUARANTINE, Profile, Quarantine, Sample, Series, ShapeClass};
use crate::backend::BackendId;
use crate::description::element::ElementType;
use crate::description::matmul::ElementTypes;
use crate::description::options::Device;
use crate::dispatch::machine::MachineKey;

const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    machine: Machine,
    series: Vec<FileSeries>,
    quarantine: Vec<FileQuarantine>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    chip: String,
    os_build: String,
    crate_version: String,
    features: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Types {
    a: String,
    b: String,
    accumulator: String,
    output: String,
    bias: String,
    scales: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSeries {
    backend: String,
    description: String,
    types: Types,
    device: String,
    threads: usize,
    samples: Vec<FileSample>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSample {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    constant_b: bool,
    compile_ns: f64,
    first_run_ns: f64,
    run_ns: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileQuarantine {
    backend: String,
    shape_class: Option<FileShapeClass>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    graph: Option<String>,
    chip: String,
    os_build: String,
    reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileShapeClass {
    types: Types,
    bits: [u32; 4],
    constant_b: bool,
}

/// Only the version, whatever else is there.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

pub(super) fn to_json(profile: &Profile) -> serde_json::Result<Vec<u8>> {
    let file = File {
        format: FORMAT,
        machine: Machine {
            chip: profile.machine.chip.clone(),
            os_build: profile.machine.os_build.clone(),
            crate_version: profile.machine.crate_version.clone(),
            features: profile.machine.features.clone(),
        },
        series: profile.series.iter().map(series_to_file).collect(),
        quarantine: profile.quarantine.iter().map(quarantine_to_file).collect(),
    };
    let mut bytes = serde_json::to_vec(&file)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// # Errors
/// What is wrong with the text.
pub(super) fn from_json(bytes: &[u8]) -> Result<Profile, String> {
    let damaged = |error: serde_json::Error| format!("not a profile: {error}");
    let Version { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(format!("a profile of format {format}, this crate reads format {FORMAT}"));
    }
    let file: File = serde_json::from_slice(bytes).map_err(damaged)?;
    let Machine { chip, os_build, crate_version, features } = file.machine;
    let mut profile = Profile::new(MachineKey { chip, os_build, crate_version, features });
    for series in file.series {
        profile.add_series(series_from_file(series)?).map_err(|error| error.to_string())?;
    }
    if file.quarantine.len() > MAXIMUM_QUARANTINE {
        return Err(format!("more than {MAXIMUM_QUARANTINE} entries of quarantine"));
    }
    for entry in file.quarantine {
        profile.quarantine.push(quarantine_from_file(entry)?);
    }
    Ok(profile)
}

fn series_to_file(series: &Series) -> FileSeries {
    FileSeries {
        backend: series.backend.to_string(),
        description: series.description.clone(),
        types: types_to_file(series.types),
        device: series.device.to_string(),
        threads: series.threads,
        samples: series
            .samples
            .iter()
            .map(|&Sample { batch, m, n, k, constant_b, compile_ns, first_run_ns, run_ns }| FileSample {
                batch,
                m,
                n,
                k,
                constant_b,
                compile_ns,
                first_run_ns,
                run_ns,
            })
            .collect(),
    }
}

fn series_from_file(series: FileSeries) -> Result<Series, String> {
    let device: Device = series.device.parse().map_err(|error| format!("{error}"))?;
    let samples = series
        .samples
        .into_iter()
        .map(|FileSample { batch, m, n, k, constant_b, compile_ns, first_run_ns, run_ns }| Sample {
            batch,
            m,
            n,
            k,
            constant_b,
            compile_ns,
            first_run_ns,
            run_ns,
        })
        .collect();
    Ok(Series {
        backend: BackendId::new(series.backend),
        description: series.description,
        types: types_from_file(&series.types)?,
        device,
        threads: series.threads,
        samples,
    })
}

fn quarantine_to_file(entry: &Quarantine) -> FileQuarantine {
    FileQuarantine {
        backend: entry.backend.to_string(),
        shape_class: entry.shape_class.as_ref().map(|class| FileShapeClass {
            types: types_to_file(class.types),
            bits: class.bits,
            constant_b: class.constant_b,
        }),
        graph: entry.graph.clone(),
        chip: entry.chip.clone(),
        os_build: entry.os_build.clone(),
        reason: entry.reason.clone(),
    }
}

fn quarantine_from_file(entry: FileQuarantine) -> Result<Quarantine, String> {
    let shape_class = entry
        .shape_class
        .map(|class| {
            let types = types_from_file(&class.types)?;
            Ok::<_, String>(ShapeClass { types, bits: class.bits, constant_b: class.constant_b })
        })
        .transpose()?;
    Ok(Quarantine {
        backend: BackendId::new(entry.backend),
        shape_class,
        graph: entry.graph,
        chip: entry.chip,
        os_build: entry.os_build,
        reason: entry.reason,
    })
}

fn types_to_file(types: ElementTypes) -> Types {
    Types {
        a: types.a.to_string(),
        b: types.b.to_string(),
        accumulator: types.accumulator.to_string(),
        output: types.output.to_string(),
        bias: types.bias.to_string(),
        scales: types.scales.to_string(),
    }
}

fn types_from_file(types: &Types) -> Result<ElementTypes, String> {
    Ok(ElementTypes {
        a: element(&types.a)?,
        b: element(&types.b)?,
        accumulator: element(&types.accumulator)?,
        output: element(&types.output)?,
        bias: element(&types.bias)?,
        scales: element(&types.scales)?,
    })
}

fn element(name: &str) -> Result<ElementType, String> {
    ElementType::ALL
        .into_iter()
        .find(|element| element.to_string() == name)
        .ok_or_else(|| format!("unknown element type `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::matmul::MatMul;
    use crate::dispatch::profile::tests::{quarantine, series};

    fn profile() -> Profile {
        let mut profile = Profile::new(MachineKey::here());
        profile.add_series(series(2, 0.1 + 0.2)).unwrap();
        profile.add_quarantine(quarantine(&MatMul::new(2, 2, 2).unwrap()));
        let strange = Quarantine::here(BackendId::new("a\"\\\u{0}\n"), None, "hung: \u{1F980}");
        profile.add_quarantine(Quarantine { graph: Some("0123".into()), ..strange.clone() });
        profile.add_quarantine(strange);
        profile
    }

    #[test]
    fn what_is_written_is_read() {
        let profile = profile();
        assert_eq!(from_json(&to_json(&profile).unwrap()), Ok(profile));
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error_or_a_profile() {
        let bytes = to_json(&profile()).unwrap();
        for length in 0..bytes.len() - 1 {
            assert!(from_json(&bytes[..length]).is_err(), "{length}");
        }
        for index in 0..bytes.len() {
            for value in [0, b'9', b'"', b'{', b'[', b'-', 0xff] {
                let mut changed = bytes.clone();
                changed[index] = value;
                if let Ok(profile) = from_json(&changed) {
                    assert!(profile.series.iter().all(|series| series.samples[0].run_ns > 0.0));
                }
            }
        }
    }

    #[test]
    fn hostile_texts_are_errors() {
        let good = String::from_utf8(to_json(&profile()).unwrap()).unwrap();
        for (from, to, expected) in [
            ("\"format\":2", "\"format\":1", "format 1"),
            ("\"format\":2", "\"format\":-1", "not a profile"),
            ("\"format\":2", "\"format\":2,\"more\":1", "unknown field"),
            ("\"m\":2", "\"m\":99999999999999999999999", "not a profile"),
            ("\"m\":2", "\"m\":0", "dimension"),
            ("\"threads\":2", "\"threads\":0", "thread"),
            ("\"run_ns\":0.", "\"run_ns\":-0.", "time"),
            ("\"run_ns\":0.", "\"run_ns\":1e999,\"x\":0.", "not a profile"),
            ("\"a\":\"f32\"", "\"a\":\"f33\"", "unknown element type"),
            ("\"device\":\"unknown\"", "\"device\":\"tpu\"", "unknown device"),
        ] {
            assert!(good.contains(from), "{from}");
            let text = from_json(good.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(text.contains(expected), "{to}: {text}");
        }
        assert!(from_json("[".repeat(1_000_000).as_bytes()).is_err(), "deep nesting");
    }
}
