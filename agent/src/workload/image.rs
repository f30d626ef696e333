//! What an image says about the programs that are to run in it: `/etc/openshell/image.toml`, read once at boot and merged
//! below the boot spec. What the sandbox was created with wins.

use std::collections::BTreeMap;
use std::ops::Range;

use proto::boot::{BootSpec, MainProcess, WorkloadUser};
use proto::budget::{ENVIRONMENT_MAX, VARIABLE_NAME_MAX, VARIABLE_VALUE_MAX};
use proto::layout::{IMAGE_CONFIG, RESERVED_ENVIRONMENT};
use serde::Deserialize;
use toml::Spanned;

use super::passwd;

/// The longest file that is read, in bytes.
pub const FILE_MAX: usize = 64 * 1024;
/// Arguments of entrypoint and command together.
const ARGUMENTS_MAX: usize = 256;

/// The document. Words that it does not know are mistakes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    user: Option<Spanned<String>>,
    workdir: Option<Spanned<String>>,
    environment: BTreeMap<String, Spanned<String>>,
    entrypoint: Vec<Spanned<String>>,
    command: Vec<Spanned<String>>,
}

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Image {
    user: Option<WorkloadUser>,
    workdir: Option<String>,
    environment: BTreeMap<String, String>,
    argv: Vec<String>,
}

impl Image {
    /// From the file's content and the image's `/etc/passwd`.
    ///
    /// # Errors
    /// File, line and what is wrong there.
    pub fn parse(content: &[u8], passwd: &str) -> Result<Self, String> {
        let wrong = |line: usize, what: &str| format!("{IMAGE_CONFIG}, line {line}: {what}");
        if content.len() > FILE_MAX {
            return Err(format!("{IMAGE_CONFIG}: more than {FILE_MAX} bytes"));
        }
        let text =
            std::str::from_utf8(content).map_err(|error| wrong(line_of(content, error.valid_up_to()), "not UTF-8"))?;
        let at = |span: Range<usize>, what: &str| wrong(line_of(content, span.start), what);
        let document: Document =
            toml::from_str(text).map_err(|error| at(error.span().unwrap_or_default(), error.message()))?;
        let user = document
            .user
            .map(|user| passwd::ids(passwd, user.as_ref()).map_err(|what| at(user.span(), &format!("user: {what}"))));
        let workdir = document.workdir.map(|directory| match is_place(directory.as_ref()) {
            true => Ok(directory.into_inner()),
            false => Err(at(directory.span(), "workdir: write an absolute path")),
        });
        if document.environment.len() > ENVIRONMENT_MAX {
            return Err(format!("{IMAGE_CONFIG}: environment: more than {ENVIRONMENT_MAX} variables"));
        }
        let mut environment = BTreeMap::new();
        for (name, value) in document.environment {
            let span = value.span();
            variable(&name, value.as_ref()).map_err(|what| at(span, &what))?;
            if !name.starts_with(RESERVED_ENVIRONMENT) {
                environment.insert(name, value.into_inner());
            }
        }
        let mut argv = Vec::new();
        for argument in document.entrypoint.into_iter().chain(document.command) {
            if argument.as_ref().contains('\0') || argv.len() == ARGUMENTS_MAX {
                let rule = format!("entrypoint and command: at most {ARGUMENTS_MAX} arguments without NUL bytes");
                return Err(at(argument.span(), &rule));
            }
            argv.push(argument.into_inner());
        }
        Ok(Self { user: user.transpose()?, workdir: workdir.transpose()?, environment, argv })
    }

    /// Into the spec, wherever that says nothing itself. What is not followed is returned, for the console.
    pub fn apply(self, spec: &mut BootSpec) -> Option<String> {
        for (name, value) in self.environment {
            spec.environment.entry(name).or_insert(value);
        }
        spec.workdir = spec.workdir.take().or(self.workdir);
        if spec.main.is_none() && !self.argv.is_empty() {
            let (tty, restart) = (spec.image_main.tty, spec.image_main.restart);
            spec.main = Some(MainProcess { argv: self.argv, tty, await_attachment: false, restart });
        }
        match self.user {
            Some(user) if user.uid == 0 || user.gid == 0 => Some(format!(
                "{IMAGE_CONFIG} asks for root: programs run as uid {} gid {} instead",
                spec.user.uid, spec.user.gid
            )),
            Some(user) => {
                spec.user = user;
                None
            }
            None => None,
        }
    }
}

fn line_of(content: &[u8], offset: usize) -> usize {
    1 + content[..offset.min(content.len())].iter().filter(|byte| **byte == b'\n').count()
}

fn is_place(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

fn variable(name: &str, value: &str) -> Result<(), String> {
    let sound = !name.is_empty() && name.len() <= VARIABLE_NAME_MAX && !name.contains(['=', '\0']);
    if !sound || value.len() > VARIABLE_VALUE_MAX || value.contains('\0') {
        return Err(format!(
            "environment: `{}`: a name of at most {VARIABLE_NAME_MAX} bytes without `=`, and a value of at most \
             {VARIABLE_VALUE_MAX}, both without NUL bytes",
            name.escape_debug()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::boot::{DEFAULT_USER, ImageMain, RestartPolicy};

    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:/bin/sh\n";

    fn spec() -> BootSpec {
        BootSpec {
            sandbox_id: uuid::Uuid::nil(),
            instance_id: "1-a".into(),
            hostname: "dev".into(),
            endpoint: "vsock://2:5100".into(),
            endpoints: vec![],
            wall_time_ms: 0,
            ssh_host_key: String::new().into(),
            user: DEFAULT_USER,
            main: None,
            needs_session: false,
            environment: [("A".to_owned(), "of the sandbox".to_owned())].into(),
            services: vec![],
            workdir: None,
            image_main: ImageMain { tty: true, restart: RestartPolicy::Always },
        }
    }

    fn applied(document: &str, spec: &mut BootSpec) -> Option<String> {
        Image::parse(document.as_bytes(), PASSWD).unwrap().apply(spec)
    }

    const ALL: &str = r#"
        user = "web"
        workdir = "/srv"
        entrypoint = ["/bin/serve", "--fast"]
        command = ["8080"]
        [environment]
        A = "of the image"
        B = "2"
        OPENSHELL_ENDPOINT = "elsewhere"
    "#;

    #[test]
    fn the_image_fills_in_what_the_sandbox_does_not_say() {
        let mut filled = spec();
        assert_eq!(applied(ALL, &mut filled), None);
        assert_eq!(filled.user, WorkloadUser { uid: 33, gid: 34 });
        assert_eq!(filled.workdir.as_deref(), Some("/srv"));
        let main = filled.main.expect("the image's");
        assert_eq!(main.argv, ["/bin/serve", "--fast", "8080"]);
        assert_eq!((main.tty, main.restart, main.await_attachment), (true, RestartPolicy::Always, false));
        let variables: Vec<_> = filled.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(variables, ["A=of the sandbox", "B=2"]);

        let own =
            MainProcess { argv: vec!["own".into()], tty: false, await_attachment: true, restart: RestartPolicy::Never };
        let mut given = BootSpec { main: Some(own.clone()), workdir: Some("/own".into()), ..spec() };
        applied(ALL, &mut given);
        assert_eq!((given.main, given.workdir.as_deref()), (Some(own), Some("/own")), "no entrypoint in front of it");

        let mut unchanged = spec();
        applied("", &mut unchanged);
        assert_eq!((unchanged.main, unchanged.user, unchanged.workdir), (None, DEFAULT_USER, None));
    }

    #[test]
    fn the_user_is_never_root() {
        for root in ["root", "0", "7:0", "0:7"] {
            let mut asked = spec();
            let told = applied(&format!("user = \"{root}\""), &mut asked).expect("a message");
            assert!(told.contains("asks for root") && told.contains("uid 1000"), "{told}");
            assert_eq!(asked.user, DEFAULT_USER);
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let long = format!("workdir = \"/{}\"", "x".repeat(FILE_MAX));
        let many = format!("\ncommand = [{}]", "\"a\",".repeat(ARGUMENTS_MAX + 1));
        for (document, said) in [
            ("\n\nuser = nobody", "/etc/openshell/image.toml, line 3: "),
            ("\nuser = \"nobody\"", "/etc/openshell/image.toml, line 2: user: `nobody`"),
            ("usr = \"a\"", "line 1: unknown field `usr`"),
            ("\nworkdir = \"srv\"", "line 2: workdir"),
            ("[environment]\nA = \"1\"\n\"B=\" = \"2\"", "line 3: environment: `B=`"),
            ("entrypoint = \"sh\"", "line 1: "),
            ("\n\ncommand = [\"a\", \"\\u0000\"]", "line 3: entrypoint and command"),
            (many.as_str(), "line 2: entrypoint and command: at most 256"),
            (long.as_str(), "more than 65536 bytes"),
        ] {
            let error = Image::parse(document.as_bytes(), PASSWD).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert!(Image::parse(b"user = \"web\"\n\xff", PASSWD).unwrap_err().contains("line 2: not UTF-8"));
    }
}
