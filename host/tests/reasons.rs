//! What a driver says why, and the exit code that a user gets for it, have the same name.

#![forbid(unsafe_code)]

use host::command::exit::ExitCode;
use host::sandbox::driver::DriverReason;

#[test]
fn a_drivers_reason_is_found_as_an_exit_code() {
    for (reason, exit) in [
        (DriverReason::VmmSpec, ExitCode::VmmSpec),
        (DriverReason::VmmAlreadyRunning, ExitCode::VmmAlreadyRunning),
        (DriverReason::Libkrunfw, ExitCode::Libkrunfw),
        (DriverReason::Kvm, ExitCode::Kvm),
        (DriverReason::Jail, ExitCode::Jail),
        (DriverReason::Libkrun, ExitCode::Libkrun),
        (DriverReason::Agent, ExitCode::Agent),
        (DriverReason::ProgramMissing, ExitCode::ProgramMissing),
    ] {
        assert_eq!(ExitCode::of_reason(&reason.name()), Some(exit));
    }
}
