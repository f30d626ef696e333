//! `openshell sandbox logs`

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use prost_types::Timestamp;
use proto::log::{FIELD_BOOT, FIELD_CONTINUES, FIELD_SEQUENCE, TARGET_GAP};
use proto::openshell::v1::sandbox_stream_event::Payload;
use proto::openshell::v1::{GetSandboxLogsRequest, SandboxLogLine, SandboxStreamEvent, WatchSandboxRequest};
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, Streaming};

use super::Named;
use super::arguments::{Format, Output, workspace};
use super::connect::{Client, Gateway, answer};
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::table;

/// Before a broken stream is opened again: a gateway may restart while somebody follows.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a gateway may take to begin a stream.
const OPEN: Duration = Duration::from_secs(10);
/// The last one that RFC 3339 can write, less one: what a guest says of time is not always right.
const LAST_SECOND: u64 = 253_402_300_798;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    sandbox: Named,
    /// Go on with what comes, until the sandbox ends
    #[arg(short, long)]
    follow: bool,
    /// Nothing older: a duration like 10m, or a time like 2026-11-28T20:15:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<SystemTime>,
    /// Only of `main`, `agent`, or this service; may be repeated
    #[arg(long = "source", value_name = "SOURCE")]
    sources: Vec<String>,
    /// Only the last so many
    #[arg(short = 'n', long, value_name = "LINES")]
    lines: Option<u32>,
    #[command(flatten)]
    output: Output,
}

fn since(text: &str) -> Result<SystemTime, String> {
    let ago = humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
    let time = ago.or_else(|| humantime::parse_rfc3339_weak(text).ok()).filter(|time| *time >= UNIX_EPOCH);
    time.ok_or_else(|| "write a duration like 10m, or a time like 2026-11-28T20:15:00Z".to_owned())
}

impl Logs {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut client = gateway.client(console).await?;
        if self.follow {
            return self.follow(client, console).await;
        }
        let request = GetSandboxLogsRequest {
            sandbox: self.sandbox.name.clone(),
            lines: self.lines.unwrap_or(0),
            sources: self.sources.clone(),
            workspace_scope: workspace(),
            since_time: self.since_time(),
            ..Default::default()
        };
        let logs = match self.lines {
            Some(0) => vec![],
            _ => answer(&self.act(), client.get_sandbox_logs(request)).await?.logs,
        };
        for line in &logs {
            self.print(line, console).await?;
        }
        Ok(0)
    }

    /// Across restarts of the gateway: the agent sends what it still has once more, and what was printed is known.
    async fn follow(&self, mut client: Client, console: &mut Console) -> Result<u8, CommandError> {
        let mut signals = console.signals()?;
        let mut printed = Place::default();
        let mut tail = self.lines.unwrap_or(u32::MAX);
        let mut begun = false;
        loop {
            let opened = tokio::select! {
                opened = timeout(OPEN, client.watch_sandbox(self.watch(tail))) => opened,
                signal = signals.next() => return Ok(signal.code()),
            };
            let ended = match opened {
                Ok(Ok(stream)) => {
                    begun = true;
                    tokio::select! {
                        ended = self.carry(stream.into_inner(), &mut printed, console) => ended?,
                        signal = signals.next() => return Ok(signal.code()),
                    }
                }
                Ok(Err(status)) => Some(status),
                Err(_) => Some(Status::unavailable("no answer")),
            };
            match ended {
                None => return Ok(ExitCode::Ok.code()),
                // Deleted meanwhile: that is an end, too.
                Some(status) if begun && status.code() == Code::NotFound => return Ok(ExitCode::Ok.code()),
                Some(status) if !passes(&status) => return Err(CommandError::of_status(&self.act(), &status)),
                Some(_) => {}
            }
            if printed != Place::default() {
                tail = u32::MAX;
            }
            tokio::select! {
                () = sleep(AGAIN) => {}
                signal = signals.next() => return Ok(signal.code()),
            }
        }
    }

    /// Prints what has not been printed yet. Returns how the stream broke; nothing where it came to its end.
    async fn carry(
        &self,
        mut stream: Streaming<SandboxStreamEvent>,
        printed: &mut Place,
        console: &mut Console,
    ) -> Result<Option<Status>, CommandError> {
        loop {
            match stream.message().await.map(|event| event.map(|event| event.payload)) {
                Ok(Some(Some(Payload::Log(line)))) => {
                    let place = Place::of(&line);
                    if place > *printed {
                        self.print(&line, console).await?;
                        *printed = place;
                    }
                }
                Ok(Some(Some(Payload::Warning(warning)))) => {
                    console.note(&format!("warning: {}", table::printable(&warning.message))).await;
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(status) => return Ok(Some(status)),
            }
        }
    }

    fn watch(&self, tail: u32) -> WatchSandboxRequest {
        WatchSandboxRequest {
            sandbox: self.sandbox.name.clone(),
            follow_logs: true,
            log_tail_lines: tail,
            stop_on_terminal: true,
            log_sources: self.sources.clone(),
            workspace_scope: workspace(),
            since_time: self.since_time(),
            ..Default::default()
        }
    }

    async fn print(&self, line: &SandboxLogLine, console: &mut Console) -> Result<(), CommandError> {
        let text = match self.output.output {
            Format::Table => text(line),
            Format::Json => json(line),
        };
        console.line(&text).await.map_err(CommandError::output)
    }

    fn since_time(&self) -> Option<Timestamp> {
        self.since.map(Timestamp::from)
    }

    fn act(&self) -> String {
        format!("get the logs of sandbox `{}`", self.sandbox.name)
    }
}

/// Whether it is worth another try: a broken connection is Unknown or Cancelled to a client, a closing gateway
/// Unavailable.
fn passes(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Aborted)
}

/// Where a line stands among all of its sandbox: the number of the boot, and its number in that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u64, u64);

impl Place {
    fn of(line: &SandboxLogLine) -> Self {
        let field = |name: &str| line.fields.get(name).map_or("", String::as_str);
        let boot = field(FIELD_BOOT).split('-').next().unwrap_or_default();
        Self(boot.parse().unwrap_or(0), field(FIELD_SEQUENCE).parse().unwrap_or(0))
    }
}

/// One line for people. What a guest wrote does not steer their terminal.
fn text(line: &SandboxLogLine) -> String {
    let [time, source] = [time(line), table::printable(&line.source)];
    let message: String = line.message.split('\t').map(table::printable).collect::<Vec<_>>().join("\t");
    let mark = match (line.target == TARGET_GAP, line.fields.contains_key(FIELD_CONTINUES)) {
        (true, _) => " --- ",
        (_, true) => " ... ",
        _ => " ",
    };
    format!("{time} {source}:{mark}{message}")
}

fn time(line: &SandboxLogLine) -> String {
    let millis = line.event_time.as_ref().map_or(0, |time| {
        u64::try_from(time.seconds).unwrap_or(0).min(LAST_SECOND) * 1000
            + (u64::try_from(time.nanos).unwrap_or(0) / 1_000_000).min(999)
    });
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).to_string()
}

/// Field names are stable: scripts read them.
#[derive(Debug, Serialize)]
struct LineView<'a> {
    time: String,
    source: &'a str,
    level: &'a str,
    target: &'a str,
    /// As the guest wrote it, but for what is not UTF-8.
    message: &'a str,
    fields: std::collections::BTreeMap<&'a str, &'a str>,
}

/// One object a line, so that a stream of them can be read as it comes.
fn json(line: &SandboxLogLine) -> String {
    let view = LineView {
        time: time(line),
        source: &line.source,
        level: &line.level,
        target: &line.target,
        message: &line.message,
        fields: line.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
    };
    // This shape has string keys and no failing serializer.
    serde_json::to_string(&view).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str, boot: &str, sequence: &str) -> SandboxLogLine {
        SandboxLogLine {
            message: message.into(),
            source: "main".into(),
            level: "INFO".into(),
            target: "stdout".into(),
            event_time: Some(Timestamp { seconds: 0, nanos: 5_000_000 }),
            fields: [("boot".to_owned(), boot.to_owned()), ("seq".to_owned(), sequence.to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn terminals_are_not_steered_and_scripts_get_what_was_written() {
        let mut hostile = line("a\tb\x1b[2J\r", "1-a", "1");
        assert_eq!(text(&hostile), "1970-01-01T00:00:00.005Z main: a\tb\u{fffd}[2J\u{fffd}");
        let parsed: serde_json::Value = serde_json::from_str(&json(&hostile)).unwrap();
        assert_eq!((&parsed["message"], &parsed["fields"]["seq"]), (&"a\tb\x1b[2J\r".into(), &"1".into()));
        hostile.event_time = Some(Timestamp { seconds: i64::MAX, nanos: -7 });
        assert!(text(&hostile).starts_with("9999-12-31T"));
    }

    #[test]
    fn places_are_in_the_order_of_boots_and_numbers() {
        let places =
            [("1-f", "9"), ("1-f", "10"), ("2-a", "1"), ("10-a", "1")].map(|(b, s)| Place::of(&line("", b, s)));
        assert!(places.is_sorted() && places[0] > Place::default());
        assert_eq!(Place::of(&line("", "odd", "odd")), Place::default());
    }

    #[test]
    fn since_is_a_duration_or_a_time() {
        let then = since("10m").unwrap();
        let ago = SystemTime::now().duration_since(then).unwrap();
        assert!(ago >= Duration::from_secs(600) && ago < Duration::from_secs(660));
        assert_eq!(since("1970-01-01T00:00:07Z"), Ok(UNIX_EPOCH + Duration::from_secs(7)));
        assert!(since("yesterday").is_err() && since("1000000y").is_err());
    }
}
