//! Which lines somebody wants.

use prost_types::Timestamp;
use proto::log::{LEVELS, SOURCE_AGENT, TARGET_GAP};
use proto::openshell::v1::SandboxLogLine;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    sources: Vec<String>,
    level: usize,
    since: Option<Timestamp>,
}

impl Filter {
    /// Lines of these sources (all where there are none), of this level and above (all where it is empty), not from
    /// before `since`.
    ///
    /// # Errors
    /// There is no such level; for people.
    pub fn new(sources: Vec<String>, min_level: &str, since: Option<Timestamp>) -> Result<Self, String> {
        let level = match min_level {
            "" => Some(0),
            name => rank(name),
        };
        let level = level.ok_or_else(|| format!("a level is one of {}", LEVELS.join(", ")))?;
        Ok(Self { sources, level, since })
    }

    /// Whether this is one of them. A gap that may hide lines of any source is, whatever the source.
    pub fn admits(&self, line: &SandboxLogLine) -> bool {
        let everybodys = line.target == TARGET_GAP && line.source == SOURCE_AGENT;
        let time = |time: &Timestamp| (time.seconds, time.nanos);
        let source = self.sources.is_empty() || everybodys || self.sources.contains(&line.source);
        let level = rank(&line.level).is_some_and(|level| level >= self.level);
        let recent = self.since.as_ref().is_none_or(|since| line.event_time.as_ref().map(time) >= Some(time(since)));
        source && level && recent
    }
}

fn rank(level: &str) -> Option<usize> {
    LEVELS.iter().position(|known| known.eq_ignore_ascii_case(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_level_and_time() {
        let line = |source: &str, target: &str, level: &str, seconds| SandboxLogLine {
            source: source.into(),
            target: target.into(),
            level: level.into(),
            event_time: Some(Timestamp { seconds, nanos: 5 }),
            ..Default::default()
        };
        let filter = Filter::new(vec!["web".into()], "warn", Some(Timestamp { seconds: 10, nanos: 5 })).unwrap();
        assert!(filter.admits(&line("web", "stdout", "ERROR", 10)));
        assert!(!filter.admits(&line("web", "stdout", "INFO", 10)));
        assert!(!filter.admits(&line("main", "stdout", "ERROR", 10)));
        assert!(!filter.admits(&line("web", "stdout", "ERROR", 9)));
        assert!(filter.admits(&line("agent", "gap", "WARN", 11)), "a gap of anybody's lines");
        assert!(!filter.admits(&line("main", "gap", "WARN", 11)), "a gap of another source");
        assert!(Filter::default().admits(&line("main", "stdout", "TRACE", 0)));
        assert!(Filter::new(vec![], "loud", None).is_err());
    }
}
