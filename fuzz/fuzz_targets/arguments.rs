//! Whatever stands on the command line is parsed or refused, and nothing is run.
#![no_main]

#[path = "../../cli/src/args.rs"]
#[allow(dead_code, unexpected_cfgs)]
mod args;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use clap::Parser as _;
use libfuzzer_sys::fuzz_target;

// Arguments are separated by newlines, and need not be UTF-8.
fuzz_target!(|bytes: &[u8]| {
    let arguments = bytes.split(|&byte| byte == b'\n').map(|argument| OsString::from_vec(argument.to_vec()));
    let arguments = std::iter::once(OsString::from("ane-matmul")).chain(arguments);
    match args::Cli::try_parse_from(arguments) {
        Ok(cli) => assert!(!format!("{cli:?}").is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
