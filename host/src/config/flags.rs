//! The layer of the flags: those of `openshell-gateway` and of `openshell gateway run`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, value_parser};

use super::keys::{Fallback, Given, KEYS, Key, Value};
use super::problem::Origin;

const CONFIG: &str = "config";
const DETACHED: &str = "detached";

/// One flag for each key, made from [`KEYS`]. Values are text here: they are judged together with everything
/// else, so that all mistakes are reported at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayFlags {
    /// What was given.
    pub given: Vec<(Key, String)>,
    /// `--config`: the configuration file.
    pub config: Option<PathBuf>,
    /// `--detached`: started in the background; the gateway leaves the session of whoever started it.
    pub detached: bool,
}

impl GatewayFlags {
    pub(super) fn values(&self, given: &mut Given) {
        for (key, text) in &self.given {
            let origin = Origin::Flag(key.row().flag);
            given.insert(*key, Value { text: text.clone(), origin });
        }
    }

    /// The arguments that say the same, for another program with these flags.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let with = |flag: &str, value: &std::ffi::OsStr| {
            let mut argument = OsString::from(format!("--{flag}="));
            argument.push(value);
            argument
        };
        let mut arguments =
            self.given.iter().map(|(key, text)| with(key.row().flag, text.as_ref())).collect::<Vec<_>>();
        arguments.extend(self.config.iter().map(|path| with(CONFIG, path.as_os_str())));
        arguments.extend(self.detached.then(|| OsString::from(format!("--{DETACHED}"))));
        arguments
    }
}

impl Args for GatewayFlags {
    fn augment_args(command: Command) -> Command {
        let command = KEYS.iter().fold(command, |command, row| {
            let fallback = match row.fallback {
                Fallback::Text(text) | Fallback::Computed(text) => text.replace('`', ""),
            };
            let help = format!("{} [env: {}] [default: {fallback}]", row.meaning.replace('`', ""), row.variable);
            let arg = Arg::new(row.flag).long(row.flag).value_name("VALUE").help(help);
            // What can be on or off is switched on by its flag alone.
            let switch = matches!(row.fallback, Fallback::Text("true" | "false"));
            command.arg(if switch {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true")
            } else {
                arg
            })
        });
        command
            .arg(Arg::new(CONFIG).long(CONFIG).value_name("FILE").value_parser(value_parser!(PathBuf)).help(
                "Configuration file [env: OPENSHELL_GATEWAY_CONFIG] \
                           [default: $XDG_CONFIG_HOME/openshell/gateway.toml]",
            ))
            .arg(Arg::new(DETACHED).long(DETACHED).action(ArgAction::SetTrue).hide(true))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GatewayFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let text = |row: &super::keys::Row| matches.get_one::<String>(row.flag).map(|text| (row.key, text.clone()));
        Ok(Self {
            given: KEYS.iter().filter_map(text).collect(),
            config: matches.get_one::<PathBuf>(CONFIG).cloned(),
            detached: matches.get_flag(DETACHED),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        flags: GatewayFlags,
    }

    #[test]
    fn every_key_has_a_flag_and_arguments_say_the_same_again() {
        let arguments = KEYS.iter().map(|row| format!("--{}=value-of-{}", row.flag, row.flag));
        let arguments = arguments.chain(["--config=/c".to_owned(), "--detached".to_owned()]);
        let first = Program::parse_from(std::iter::once("program".to_owned()).chain(arguments)).flags;
        assert_eq!(first.given.len(), KEYS.len());
        assert!(first.detached);
        let again = Program::parse_from(std::iter::once("program".into()).chain(first.to_arguments())).flags;
        assert_eq!(first, again);
    }
}
