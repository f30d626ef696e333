//! What an agent may put in a batch.

use prost_types::Timestamp;
use proto::log::{BATCH_LINES, FIELD_BOOT, FIELD_MAX, FIELD_SEQUENCE, FIELDS_MAX, LEVELS, MESSAGE_MAX, NAME_MAX};
use proto::openshell::v1::SandboxLogLine;

/// From here on, a time cannot be written as those of RFC 3339.
const YEAR_10000: i64 = 253_402_300_800;

/// The lines of a batch, each with its number.
///
/// # Errors
/// The first bound that does not hold, for people. Nothing of the batch is taken then.
pub(super) fn batch(
    lines: Vec<SandboxLogLine>,
    sandbox_id: &str,
    boot: &str,
) -> Result<Vec<(u64, SandboxLogLine)>, String> {
    if lines.len() > BATCH_LINES {
        return Err(format!("a batch has at most {BATCH_LINES} lines"));
    }
    let owned = |line| SandboxLogLine { sandbox_id: sandbox_id.to_owned(), ..line };
    lines.into_iter().map(|line| number(&line, boot).map(|number| (number, owned(line)))).collect()
}

fn number(line: &SandboxLogLine, boot: &str) -> Result<u64, String> {
    if line.message.len() > MESSAGE_MAX {
        return Err(format!("a message has at most {MESSAGE_MAX} bytes"));
    }
    if line.source.is_empty() || line.source.len() > NAME_MAX || line.target.len() > NAME_MAX {
        return Err(format!("a line has a source, and neither it nor the target more than {NAME_MAX} bytes"));
    }
    if !LEVELS.contains(&line.level.as_str()) {
        return Err(format!("a level is one of {}", LEVELS.join(", ")));
    }
    let long = |(name, value): (&String, &String)| name.len() > FIELD_MAX || value.len() > FIELD_MAX;
    if line.fields.len() > FIELDS_MAX || line.fields.iter().any(long) {
        return Err(format!("a line has at most {FIELDS_MAX} fields of {FIELD_MAX} bytes"));
    }
    let in_range =
        |time: &Timestamp| (0..1_000_000_000).contains(&time.nanos) && (0..YEAR_10000).contains(&time.seconds);
    if !line.event_time.as_ref().is_some_and(in_range) {
        return Err("a line has a time, from 1970 on and of four digits".to_owned());
    }
    if line.fields.get(FIELD_BOOT).is_none_or(|named| named != boot) {
        return Err(format!("the field `{FIELD_BOOT}` is the current boot of the sandbox"));
    }
    let number = line.fields.get(FIELD_SEQUENCE).and_then(|number| number.parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| format!("the field `{FIELD_SEQUENCE}` is a number from 1 on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> SandboxLogLine {
        SandboxLogLine {
            level: "INFO".into(),
            source: "main".into(),
            target: "stdout".into(),
            message: "x".into(),
            event_time: Some(Timestamp { seconds: 1, nanos: 0 }),
            fields: [("boot".to_owned(), "1-a".to_owned()), ("seq".to_owned(), "7".to_owned())].into(),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut SandboxLogLine)) -> bool {
        let mut line = line();
        change(&mut line);
        batch(vec![line], "id", "1-a").is_err()
    }

    #[test]
    fn a_line_has_bounds() {
        let taken = batch(vec![line()], "id", "1-a").expect("a good line");
        assert_eq!((taken[0].0, taken[0].1.sandbox_id.as_str()), (7, "id"));
        assert!(batch(vec![line(); BATCH_LINES], "id", "1-a").is_ok());
        assert!(batch(vec![line(); BATCH_LINES + 1], "id", "1-a").is_err());
        assert!(refused(|line| line.message = "x".repeat(MESSAGE_MAX + 1)));
        assert!(refused(|line| line.source.clear()));
        assert!(refused(|line| line.source = "x".repeat(NAME_MAX + 1)));
        assert!(refused(|line| line.target = "x".repeat(NAME_MAX + 1)));
        assert!(refused(|line| line.level = "LOUD".into()));
        assert!(refused(|line| line.event_time = None));
        assert!(refused(|line| line.event_time = Some(Timestamp { seconds: 1, nanos: -1 })));
        assert!(refused(|line| line.event_time = Some(Timestamp { seconds: YEAR_10000, nanos: 0 })));
        assert!(refused(|line| line.fields.extend((0..20).map(|n| (n.to_string(), String::new())))));
        assert!(refused(|line| drop(line.fields.insert("x".into(), "x".repeat(FIELD_MAX + 1)))));
        for (field, value) in [("boot", "2-b"), ("seq", "0"), ("seq", "-1"), ("seq", ""), ("seq", "1e3")] {
            assert!(refused(|line| drop(line.fields.insert(field.into(), value.into()))), "{field} {value}");
        }
    }
}
