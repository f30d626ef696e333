//! Quantities as Kubernetes writes them: `512Mi`, `1G`, `2`, `2000m`.

use proto::vmm::{MEMORY_MIB, VCPUS};

const UNITS: [(&str, u64); 9] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("", 1),
];

/// Memory in MiB, rounded up; the error says what would be right.
pub fn memory_mib(text: &str) -> Result<u32, String> {
    let bad = || format!("`{}` is not an amount of memory; write it like 512Mi or 2Gi", text.escape_debug());
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor)).ok_or_else(bad)?;
    let mib = u32::try_from(bytes.div_ceil(1 << 20)).map_err(|_| bad())?;
    let least = *MEMORY_MIB.start();
    if mib < least {
        return Err(format!("{text} of memory is too little for a guest; give at least {least}Mi"));
    }
    Ok(mib)
}

/// Virtual CPUs within [`VCPUS`]; the error says what would be right. A microVM has whole CPUs: half of one is one.
pub fn cpus(text: &str) -> Result<u8, String> {
    let bad = || format!("`{}` is not a number of CPUs from 1 to {}, like 2 or 500m", text.escape_debug(), VCPUS.end());
    let milli = text.strip_suffix('m');
    let digits = milli.unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let number = digits.parse::<u32>().map_err(|_| bad())?;
    let whole = if milli.is_some() { number.div_ceil(1000) } else { number };
    u8::try_from(whole).ok().filter(|cpus| VCPUS.contains(cpus)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory() {
        for (text, mib) in [
            ("512Mi", Some(512)),
            ("2Gi", Some(2048)),
            ("1G", Some(954)),
            ("536870912", Some(512)),
            ("131072Ki", Some(128)),
            ("127Mi", None),
            ("0", None),
            ("", None),
            ("Mi", None),
            ("-1Gi", None),
            ("+512Mi", None),
            ("1.5Gi", None),
            ("512mb", None),
            ("512 Mi", None),
            ("99999999999Ti", None),
            ("8192Ti", None),
        ] {
            assert_eq!(memory_mib(text).ok(), mib, "{text}");
        }
    }

    #[test]
    fn numbers_of_cpus() {
        for (text, number) in [
            ("1", Some(1)),
            ("32", Some(32)),
            ("2000m", Some(2)),
            ("33", None),
            ("0", None),
            ("1500m", Some(2)),
            ("500m", Some(1)),
            ("0m", None),
            ("", None),
            ("m", None),
            ("two", None),
            ("1.0", None),
            ("-1", None),
        ] {
            assert_eq!(cpus(text).ok(), number, "{text}");
        }
    }
}
