//! What names and environments may look like: in a request for a sandbox, in an exec, in secrets.

use std::collections::BTreeMap;

use proto::budget::{ENVIRONMENT_BYTES_MAX, ENVIRONMENT_MAX, VARIABLE_NAME_MAX, VARIABLE_VALUE_MAX};

const NAME_MAX: usize = 19;

/// A DNS label of at most 19 characters without `--`.
///
/// # Errors
/// Which rule the name breaks.
pub fn name(name: &str) -> Result<(), String> {
    let bad = |rule: &str| Err(format!("name `{}`: {rule}", name.escape_debug()));
    if name.is_empty() || name.len() > NAME_MAX {
        return bad("must have 1 to 19 characters");
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return bad("may hold only a-z, 0-9 and -");
    }
    if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        return bad("may not begin or end with - or hold two in a row");
    }
    Ok(())
}

/// Environment limits; `exempt` names reserved keys that are allowed here.
///
/// # Errors
/// The key and the rule that it breaks.
pub fn environment(variables: &BTreeMap<String, String>, exempt: &[&str]) -> Result<(), String> {
    if variables.len() > ENVIRONMENT_MAX {
        return Err(format!("environment: {} variables; at most {ENVIRONMENT_MAX} are allowed", variables.len()));
    }
    let bytes: usize = variables.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > ENVIRONMENT_BYTES_MAX {
        return Err(format!("environment: {bytes} bytes in all; at most {ENVIRONMENT_BYTES_MAX} are allowed"));
    }
    for (key, value) in variables {
        let bad = |rule: &str| Err(format!("environment variable `{}`: {rule}", key.escape_debug()));
        if key.is_empty() || key.len() > VARIABLE_NAME_MAX || key.contains('=') {
            return bad("names have 1 to 256 bytes and no =");
        }
        if value.len() > VARIABLE_VALUE_MAX {
            return bad("values have at most 8 KiB");
        }
        if key.chars().any(char::is_control) || value.contains('\0') {
            return bad("control characters are not allowed");
        }
        if key.starts_with(proto::layout::RESERVED_ENVIRONMENT) && !exempt.contains(&key.as_str()) {
            return bad("names that begin with OPENSHELL_ are reserved");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_dns_labels() {
        for good in ["a", "dev", "a-b-1", "abcdefghijklmnopqrs"] {
            assert_eq!(name(good), Ok(()));
        }
        for bad in ["", "abcdefghijklmnopqrst", "A", "a_b", "-a", "a-", "a--b", "a.b", "ä", "a\n", "../x"] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reserved_and_malformed_variables_are_refused() {
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_string(), value.to_string())]);
        assert!(environment(&one("A", "b"), &[]).is_ok());
        assert!(environment(&one("OPENSHELL_X", "b"), &[]).is_err());
        assert!(environment(&one("OPENSHELL_PYFUNC_B64", "b"), &["OPENSHELL_PYFUNC_B64"]).is_ok());
        assert!(environment(&one("A=B", "b"), &[]).is_err());
        assert!(environment(&one("A", &"x".repeat(VARIABLE_VALUE_MAX + 1)), &[]).is_err());
        let many = (0..=ENVIRONMENT_MAX).map(|i| (format!("K{i}"), String::new())).collect();
        assert!(environment(&many, &[]).is_err());
    }
}
