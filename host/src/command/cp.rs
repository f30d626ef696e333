//! `openshell sandbox cp`

use std::ffi::OsString;

use clap::Args;

use super::connect::Gateway;
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::openssh;

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// A file or directory, here or in a sandbox
    #[arg(value_name = "[NAME:]SRC")]
    from: String,
    /// Where it goes, in a sandbox or here
    #[arg(value_name = "[NAME:]DST")]
    to: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Here(&'a str),
    Sandbox { name: &'a str, path: &'a str },
}

impl<'a> Side<'a> {
    /// A colon before the first slash ends the name of a sandbox.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') => Self::Sandbox { name, path },
            _ => Self::Here(text),
        }
    }

    /// For scp, to which a colon or a dash would mean something.
    fn argument(&self) -> String {
        match self {
            Self::Here(path) if path.starts_with(['/', '.']) => (*path).to_owned(),
            Self::Here(path) => format!("./{path}"),
            Self::Sandbox { name, path } => format!("{}:{path}", openssh::host(name)),
        }
    }
}

impl Cp {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let (from, to) = (Side::parse(&self.from), Side::parse(&self.to));
        let name = sandbox(&from, &to)?;
        openssh::know(gateway, name, console).await?;
        let mut arguments = openssh::arguments(&gateway.ssh, name);
        arguments.extend(["-r", "--"].map(OsString::from));
        arguments.extend([from.argument(), to.argument()].map(OsString::from));
        Err(openssh::become_client("scp", arguments))
    }
}

fn sandbox<'a>(from: &Side<'a>, to: &Side<'a>) -> Result<&'a str, CommandError> {
    let why = match (from, to) {
        (Side::Sandbox { name, .. }, Side::Here(_)) | (Side::Here(_), Side::Sandbox { name, .. }) => return Ok(name),
        (Side::Here(_), Side::Here(_)) => "neither side is in a sandbox; write one as NAME:PATH",
        _ => "both sides are in a sandbox; copy to this machine first, or write a file with a colon as ./FILE",
    };
    Err(CommandError::new(ExitCode::Usage, format!("failed to copy: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_is_in_a_sandbox() {
        for (text, argument) in [
            ("dev:/tmp/a b", "openshell-dev:/tmp/a b"),
            ("dev:", "openshell-dev:"),
            ("./a:b", "./a:b"),
            ("d/a:b", "./d/a:b"),
            (":a", "./:a"),
            ("-r", "./-r"),
            ("/x", "/x"),
        ] {
            assert_eq!(Side::parse(text).argument(), argument);
        }
        let copied = |from, to| sandbox(&Side::parse(from), &Side::parse(to)).map_err(|error| error.code);
        assert_eq!(copied("a", "dev:b"), Ok("dev"));
        assert_eq!(copied("dev:a", "b"), Ok("dev"));
        assert_eq!(copied("a", "b"), Err(ExitCode::Usage));
        assert_eq!(copied("dev:a", "dev:b"), Err(ExitCode::Usage));
    }
}
