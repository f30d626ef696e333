//! Whatever ends, stands still or jumps, the sandbox comes back by itself: `make recovery`.
//!
//! The cases are those of docs/recovery.md, each on real microVMs and on the fake vmm, both at once. Real gateway,
//! driver, keeper's protocol, tokens and session in both columns; only the machine of the guest is faked in one.
//!
//! ```text
//!                    ┌─ four sandboxes ─► causes of one sandbox, side by side ─► causes of the gateway ─┐
//!  runtime vm, fake ─┤                                                                                  ├─► host's clock ─► table
//!                    └─ four sandboxes ─►                 …                   ─►            …          ─┘
//! ```
//!
//! Exit codes: 0 where every case is ok or n/a, 1 where one failed, 3 where one did not run, 2 for wrong usage.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the table is the result")]

mod cases;
mod causes;
mod column;
mod host_clock;
mod table;
mod witness;

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use proto::budget;
use tokio::task::{LocalSet, spawn_local};

use cases::{CASES, Case};
use column::Column;
use table::{Cell, Table};

/// Everything but waiting for tokens to end; the tokens' part comes on top.
const WORK: Duration = Duration::from_secs(8 * 60);
/// How often a case waits for longer than a token lives, one after another.
const OUTAGES: u32 = 10;

#[derive(Parser)]
#[command(name = "recovery", about = "Proves that sandboxes come back by themselves", max_term_width = 120)]
struct Arguments {
    /// How long a token lives
    #[arg(long, value_name = "SECONDS", default_value_t = budget::TTL_MIN.as_secs(), value_parser = ttl_range())]
    ttl: u64,
    /// Only this runtime
    #[arg(long)]
    runtime: Option<Runtime>,
    /// Only this case of docs/recovery.md; may be repeated
    #[arg(long = "case", value_name = "NAME", value_parser = case_named)]
    cases: Vec<Case>,
}

fn ttl_range() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(budget::TTL_MIN.as_secs()..=budget::TTL_MAX.as_secs())
}

fn case_named(name: &str) -> Result<Case, String> {
    let known = || CASES.map(Case::name).join(", ");
    CASES.into_iter().find(|case| case.name() == name).ok_or_else(|| format!("the cases are {}", known()))
}

/// What a sandbox runs in; a column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Runtime {
    /// A libkrun microVM.
    Vm,
    /// A process of the host.
    Fake,
}

impl Runtime {
    const ALL: [Self; 2] = [Self::Vm, Self::Fake];

    fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Fake => "fake",
        }
    }
}

/// The table while it is filled in, by both columns.
pub(crate) type Shared = Rc<RefCell<Table>>;

/// One thread for both columns: they wait, and a panic of one is not the other's.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let began = Instant::now();
    let ttl = Duration::from_secs(arguments.ttl);
    let runtimes = Runtime::ALL.into_iter().filter(|one| arguments.runtime.is_none_or(|asked| asked == *one));
    let asked = |case: &Case| arguments.cases.is_empty() || arguments.cases.contains(case);
    let table = Table::new(runtimes.collect(), CASES.into_iter().filter(asked).collect());
    let shared: Shared = Rc::new(RefCell::new(table));
    say_what_cannot_run(&shared);

    let deadline = WORK + OUTAGES * (ttl + column::BEYOND);
    let columns = LocalSet::new();
    if tokio::time::timeout(deadline, columns.run_until(run(&shared, ttl))).await.is_err() {
        for runtime in Runtime::ALL {
            shared.borrow_mut().close(runtime, &format!("not done within {deadline:?}"));
        }
    }
    // What a column has started ends with it.
    drop(columns);
    let table = shared.borrow();
    println!("\n{table}\nrecovery: {} in {:.0} s", table.verdict(), began.elapsed().as_secs_f64());
    ExitCode::from(table.exit_code())
}

/// What is known before anything has been started.
fn say_what_cannot_run(shared: &Shared) {
    let place = std::env::var("OPENSHELL_E2E").unwrap_or_default();
    let mut table = shared.borrow_mut();
    for (runtime, case) in table.open() {
        if runtime == Runtime::Fake && case.is_of_a_guest() {
            table.put(runtime, case, Cell::NotApplicable);
        } else if runtime == Runtime::Vm && !["here", "lab"].contains(&place.as_str()) {
            let why = "not started by e2e/run-with-kvm, so nobody knows whether KVM works here";
            table.put(runtime, case, Cell::NotRun(why.into()));
        } else if case.sets_the_host_clock() && place != "lab" {
            table.put(runtime, case, Cell::NotRun("sets the machine's clock, so only in the lab".into()));
        }
    }
}

async fn run(shared: &Shared, ttl: Duration) {
    let runtimes = shared.borrow().runtimes_to_run();
    let columns: Vec<_> =
        runtimes.into_iter().map(|runtime| (runtime, spawn_local(column(runtime, ttl, shared.clone())))).collect();
    let mut alive = vec![];
    for (runtime, column) in columns {
        match column.await {
            Ok(column) => alive.push(column),
            Err(error) => shared.borrow_mut().close(runtime, &message(error)),
        }
    }
    causes::of_the_host_clock(&alive).await;
    for column in &alive {
        column.say_evidence();
    }
}

async fn column(runtime: Runtime, ttl: Duration, shared: Shared) -> Column {
    let mut column = Column::open(runtime, ttl, shared).await;
    causes::of_one_sandbox(&column).await;
    causes::of_the_gateway(&mut column).await;
    column
}

fn message(error: tokio::task::JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else { return "cancelled".to_owned() };
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}
