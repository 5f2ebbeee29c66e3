//! The oldest systems that the shims run on: shared by build.rs and its test.

/// The variable that sets the deployment target of an operating system, and the oldest target. What
/// the shims use without a guard is younger than Rust's own default (tests/apple_sdk/availability.txt).
pub(crate) fn oldest(os: &str) -> Result<(&'static str, &'static str), String> {
    match os {
        "macos" => Ok(("MACOSX_DEPLOYMENT_TARGET", "13.0")),
        "ios" => Ok(("IPHONEOS_DEPLOYMENT_TARGET", "16.0")),
        other => Err(format!("{other} is not among the platforms: macOS and iOS are")),
    }
}

/// Checks a deployment target that the user has set.
pub(crate) fn check(variable: &str, target: &str, oldest: &str) -> Result<(), String> {
    let version = |text: &str| {
        text.trim().split('.').map(str::parse::<u32>).collect::<Result<Vec<_>, _>>().unwrap_or_default()
    };
    if version(target) < version(oldest.trim_end_matches(".0")) {
        return Err(format!("{variable}={target} is older than {oldest}, where what they use begins"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_deployment_target_is_refused() {
        let (variable, oldest) = oldest("macos").unwrap();
        for good in ["13", "13.0", "13.5.1", "26.0", "15"] {
            assert_eq!(check(variable, good, oldest), Ok(()));
        }
        for bad in ["12.9", "11.0", "10.15", "", "next"] {
            let error = check(variable, bad, oldest).unwrap_err();
            assert!(error.contains("MACOSX_DEPLOYMENT_TARGET"), "{error}");
        }
        assert!(super::oldest("tvos").is_err());
    }
}
