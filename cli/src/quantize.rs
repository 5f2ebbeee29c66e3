//! `ane-matmul quantize`.

use std::path::Path;

use ane_matmul::ElementType;
use ane_matmul::safetensors::{Outcome, QuantizeOptions, SafetensorsFile, name_matches};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::args::{QuantizeArgs, QuantizedType};
use crate::failure::Output;
use crate::output::{STDIN, escaped, is_standard, keep_ticking, note, print, print_json, stdin};
use crate::whole_file;

pub(crate) fn run(args: &QuantizeArgs) -> Output {
    // Fail before the work, not after it.
    whole_file::check(&args.output)?;
    let file = open(&args.input)?;
    let options = options(args);
    let names = file.names();
    for pattern in &args.exclude {
        if !names.iter().any(|name| name_matches(pattern, name)) {
            note(format_args!("--exclude {pattern} matches no tensor"));
        }
    }
    let progress = ProgressBar::with_draw_target(Some(names.len() as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {wide_msg} [{pos}/{len} tensors, {elapsed}]");
    if let Ok(style) = style {
        progress.set_style(style);
    }
    progress.set_message("looking at all tensors");
    keep_ticking(&progress);
    let mut outcomes = Vec::new();
    let result = file.quantize(&options, &args.output, |name, outcome| {
        progress.set_message(escaped(name));
        progress.inc(1);
        outcomes.push((name.to_owned(), outcome.clone()));
    });
    progress.finish_and_clear();
    result?;
    for (name, outcome) in &outcomes {
        if let Outcome::Copied { reason } = outcome {
            note(format_args!("`{name}` is copied unchanged: {reason}"));
        }
    }
    if args.json {
        return print_json(&to_json(args, &outcomes));
    }
    print(to_text(&args.output, &outcomes))
}

fn options(args: &QuantizeArgs) -> QuantizeOptions {
    let mut options = QuantizeOptions::new(match args.element {
        QuantizedType::Int8 => ElementType::I8,
        QuantizedType::Int4 => ElementType::I4,
    });
    options.group_size = args.group_size.get();
    options.transpose_b = !args.in_out;
    if args.no_default_excludes {
        options.exclude.clear();
    }
    options.exclude.extend_from_slice(&args.exclude);
    options
}

/// A map takes no memory for the file; what is no file, such as a pipe, can only be read.
#[allow(unsafe_code, reason = "mapping a file is unsafe")]
fn open(path: &Path) -> Output<SafetensorsFile> {
    if is_standard(path) {
        return Ok(SafetensorsFile::read_from(stdin()?, STDIN)?);
    }
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() || metadata.is_dir()) {
        // SAFETY: the help says that the file must not be changed meanwhile. The output is another file,
        // even where it takes this one's name at the end.
        return Ok(unsafe { SafetensorsFile::map(path) }?);
    }
    Ok(SafetensorsFile::read(path)?)
}

fn to_json(args: &QuantizeArgs, outcomes: &[(String, Outcome)]) -> Value {
    let tensors: Vec<Value> = outcomes
        .iter()
        .map(|(name, outcome)| match outcome {
            Outcome::Quantized { error, bytes_before, bytes_after } => json!({
                "name": name,
                "quantized": true,
                "max_abs_error": error.max_abs_error,
                "rms_error": error.rms_error,
                "rms": error.rms,
                "relative_rms_error": error.relative_rms_error(),
                "bytes_before": bytes_before,
                "bytes_after": bytes_after,
            }),
            Outcome::Copied { reason } => json!({ "name": name, "quantized": false, "reason": reason }),
            _ => json!({ "name": name }),
        })
        .collect();
    json!({
        "input": args.input.display().to_string(),
        "output": args.output.display().to_string(),
        "type": args.element.name(),
        "group_size": args.group_size,
        "tensors": tensors,
    })
}

fn to_text(output: &Path, outcomes: &[(String, Outcome)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["tensor", "largest error", "RMS error", "of its RMS", "bytes before", "after"]);
    let (mut quantized, mut before, mut after) = (0, 0, 0);
    for (name, outcome) in outcomes {
        if let Outcome::Quantized { error, bytes_before, bytes_after } = outcome {
            table.add_row([
                escaped(name),
                format!("{:.3e}", error.max_abs_error),
                format!("{:.3e}", error.rms_error),
                format!("{:.2} %", 100.0 * error.relative_rms_error()),
                bytes_before.to_string(),
                bytes_after.to_string(),
            ]);
            (quantized, before, after) = (quantized + 1, before + bytes_before, after + bytes_after);
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let copied = outcomes.len() - quantized;
    let sum = format!(
        "{}: {quantized} tensors quantised, {before} bytes to {after}; {copied} copied unchanged",
        output.display()
    );
    if quantized == 0 { sum } else { format!("{}\n{sum}", table.trim_fmt()) }
}
