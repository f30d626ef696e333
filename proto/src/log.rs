//! Log lines: what their fields are called, and how much of them there may be.

/// The boot that a line was written in; a field of every line.
pub const FIELD_BOOT: &str = "boot";
/// The number of a line in its boot, from 1 on; a field of every line. Of a gap: that of its last missing line.
pub const FIELD_SEQUENCE: &str = "seq";
/// How many lines a gap stands for.
pub const FIELD_MISSING: &str = "missing";
/// Why they are missing, in one word.
pub const FIELD_REASON: &str = "reason";
/// Set where the line was too long and goes on in the next one of its source.
pub const FIELD_CONTINUES: &str = "continues";

/// The source of the main process.
pub const SOURCE_MAIN: &str = "main";
/// The source of the agent's own words, and of gaps.
pub const SOURCE_AGENT: &str = "agent";
/// The target of a line that stands for missing ones.
pub const TARGET_GAP: &str = "gap";

/// Levels, from the least to the most important.
pub const LEVELS: [&str; 5] = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

/// The longest message of one line, in bytes. What is longer is split.
pub const MESSAGE_MAX: usize = 4 * 1024;
/// The longest name of a source or a target, in bytes.
pub const NAME_MAX: usize = 128;
/// Fields that a line may have.
pub const FIELDS_MAX: usize = 16;
/// The longest name or value of one, in bytes.
pub const FIELD_MAX: usize = 256;
/// Lines in one batch.
pub const BATCH_LINES: usize = 100;
/// Bytes in one batch of an agent, with what each line costs beside its message.
pub const BATCH_BYTES: usize = 16 * 1024;

/// Log lines that an agent keeps, sent or not, in bytes.
pub const AGENT_RING: usize = 1024 * 1024;
/// Lines that the gateway keeps of one sandbox.
pub const GATEWAY_LINES: usize = 10_000;
/// The same in bytes. All of it fits into one reply.
pub const GATEWAY_RING: usize = 2 * 1024 * 1024;

/// Lines a second that one source may write; those beyond are counted, not kept.
pub const RATE_LINES: u64 = 1_000;
/// Bytes a second likewise.
pub const RATE_BYTES: u64 = 256 * 1024;
/// A source that was quiet may write as much at once as in so many seconds.
pub const RATE_BURST_SECONDS: u64 = 4;

// A batch holds at least two of the longest lines, and one batch does not fill the window of a stream.
const _: () = assert!(2 * MESSAGE_MAX < BATCH_BYTES && BATCH_BYTES < crate::budget::VM_STREAM_WINDOW as usize);
// A gateway that has forgotten everything can take all that an agent has.
const _: () = assert!(AGENT_RING < GATEWAY_RING);
// Clients take messages of 4 MiB.
const _: () = assert!(GATEWAY_RING < 4 * 1024 * 1024);
