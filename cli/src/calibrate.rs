//! `ane-matmul calibrate`.

use std::ops::ControlFlow;

use ane_matmul::{CalibrateOptions, Effort, Profile, calibrate};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{CalibrateArgs, backend_id};
use crate::failure::Output;
use crate::output::{keep_ticking, note, print};

pub(crate) fn run(args: &CalibrateArgs) -> Output {
    let backends = crate::backends()?;
    let path = match &args.profile {
        Some(path) => path.clone(),
        None => Profile::default_path()?,
    };
    let mut options = CalibrateOptions::new(if args.full { Effort::Full } else { Effort::Quick });
    options.threads.clone_from(&args.threads);
    options.backends = args.backend.iter().map(|name| backend_id(name)).collect();
    options.set_blas_threads = true;
    options.probe = Some(crate::probe::for_calibration()?);
    options.quarantine = Some(path.clone());
    // Fail before the work, not after it.
    Profile::check_update(&path)?;
    // And say what is wrong with a profile that is replaced.
    let before = Profile::load(&path);
    if let Err(error) = &before
        && path.exists()
    {
        note(format_args!("{error}; it is made anew"));
    }
    let whole = options.threads.is_empty() && options.backends.is_empty();

    let progress = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{spinner} {wide_msg} [{pos}/{len} products, {elapsed}, {eta} left]");
    if let Ok(style) = style {
        progress.set_style(style);
    }
    progress.set_message("using each backend for the first time");
    keep_ticking(&progress);
    let measured = calibrate(&backends, &options, |step| {
        progress.set_length(step.total as u64);
        progress.set_position(step.done as u64);
        progress.set_message(format!("{}, threads: {}", step.product, step.threads));
        ControlFlow::Continue(())
    })?;
    let elapsed = progress.elapsed();
    progress.finish_and_clear();

    let mut rejected = None;
    let after = Profile::update(&path, |profile| {
        if whole || profile.machine() != measured.machine() {
            profile.clear_series(measured.machine().clone());
        }
        for series in measured.series() {
            if let Err(error) = profile.add_series(series.clone()) {
                rejected = Some(error);
            }
        }
    })?;
    if let Some(error) = rejected {
        return Err(error.into());
    }
    let known = before.as_ref().map_or(&[][..], Profile::quarantine);
    for entry in after.quarantine().iter().filter(|entry| !known.contains(entry)) {
        note(format_args!("{} is now in quarantine, {}", entry.backend, entry.reason));
    }
    let mut text = format!("{}\n", measured.machine().chip);
    for series in measured.series() {
        text += &format!(
            "{:<12} {:<5} threads: {:<3} {} products\n",
            series.backend,
            series.types.a,
            series.threads,
            series.samples.len()
        );
    }
    text += &format!("measured in {:.1} s, kept in {}", elapsed.as_secs_f64(), path.display());
    if args.profile.is_some() {
        text += &format!("\nthe backend auto uses it where ANE_MATMUL_PROFILE={}", path.display());
    }
    print(text)
}
