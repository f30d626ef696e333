//! The list, in the order of the table. What each case is stands in docs/recovery.md, and a test compares the two.

/// One cause, and what has to come back after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Case {
    RunningPastTtl,
    GatewayKilled1s,
    StopStartPastTtl,
    StoppedPastTtl,
    GatewayStoppedPastTtl,
    GatewayKilledPastTtl,
    GatewayFrozenPastTtl,
    VmmKilled,
    VmmFrozenPastTtl,
    BothFrozenPastTtl,
    HostClockForward,
    HostClockBack,
    GuestClockForward,
    GuestClockBack,
}

/// What is there again in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boot {
    /// Nothing was started again.
    Same,
    /// Started again, once: by policy, or because somebody asked for a start.
    Next,
}

/// Every case.
pub(crate) const CASES: [Case; 14] = [
    Case::RunningPastTtl,
    Case::GatewayKilled1s,
    Case::StopStartPastTtl,
    Case::StoppedPastTtl,
    Case::GatewayStoppedPastTtl,
    Case::GatewayKilledPastTtl,
    Case::GatewayFrozenPastTtl,
    Case::VmmKilled,
    Case::VmmFrozenPastTtl,
    Case::BothFrozenPastTtl,
    Case::HostClockForward,
    Case::HostClockBack,
    Case::GuestClockForward,
    Case::GuestClockBack,
];

impl Case {
    /// Its name in the table, in the docs and on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::RunningPastTtl => "running-past-ttl",
            Self::GatewayKilled1s => "gateway-killed-1s",
            Self::StopStartPastTtl => "stop-start-past-ttl",
            Self::StoppedPastTtl => "stopped-past-ttl",
            Self::GatewayStoppedPastTtl => "gateway-stopped-past-ttl",
            Self::GatewayKilledPastTtl => "gateway-killed-past-ttl",
            Self::GatewayFrozenPastTtl => "gateway-frozen-past-ttl",
            Self::VmmKilled => "vmm-killed",
            Self::VmmFrozenPastTtl => "vmm-frozen-past-ttl",
            Self::BothFrozenPastTtl => "both-frozen-past-ttl",
            Self::HostClockForward => "host-clock-forward-3d",
            Self::HostClockBack => "host-clock-back-1h",
            Self::GuestClockForward => "guest-clock-forward-3d",
            Self::GuestClockBack => "guest-clock-back-3d",
        }
    }

    /// Whether a boot may pass.
    pub(crate) const fn boot(self) -> Boot {
        match self {
            Self::StopStartPastTtl | Self::StoppedPastTtl | Self::VmmKilled => Boot::Next,
            _ => Boot::Same,
        }
    }

    /// Whether the token from before must be replaced: it is over, or the gateway or the boot is another one. A clock
    /// of a guest says nothing about a token.
    pub(crate) const fn renews(self) -> bool {
        !self.is_of_a_guest()
    }

    /// Needs a clock that is the guest's own.
    pub(crate) const fn is_of_a_guest(self) -> bool {
        matches!(self, Self::GuestClockForward | Self::GuestClockBack)
    }

    /// Needs a machine whose clock is nobody's.
    pub(crate) const fn sets_the_host_clock(self) -> bool {
        matches!(self, Self::HostClockForward | Self::HostClockBack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `| `name` | cause | comes back | …`
    fn documented() -> Vec<(String, Boot)> {
        let page = include_str!("../../../../docs/recovery.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        rows.map(|(name, rest)| {
            let comes_back = rest.split(" | ").nth(1).unwrap_or_default();
            let boot = match comes_back {
                "same boot" => Boot::Same,
                "next boot" => Boot::Next,
                other => panic!("docs/recovery.md says that {name} comes back as `{other}`"),
            };
            (name.to_owned(), boot)
        })
        .collect()
    }

    #[test]
    fn the_page_and_the_program_have_the_same_cases() {
        let ours: Vec<_> = CASES.into_iter().map(|case| (case.name().to_owned(), case.boot())).collect();
        assert_eq!(documented(), ours, "docs/recovery.md left, the program right");
    }
}
