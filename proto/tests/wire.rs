//! What gateways and agents of one protocol generation say to each other never changes; it only grows.
//!
//! `proto/snapshots/generation-N.txt` holds a line for every RPC, field and value of the current generation. An agent in
//! a running guest is as old as its boot, and a user's SDK as old as its installation: a line that disappears is a
//! program that fails. Something new gets its lines with
//!
//! ```text
//! UPDATE_SNAPSHOT=1 cargo test -p proto --test wire
//! ```
//!
//! which adds lines and never removes any. A change that cannot do without is a new generation: raise
//! `PROTOCOL.newest` in `proto/src/version.rs`.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use proto::boot::{BootSpec, DEFAULT_USER, ImageMain, MainProcess, RestartPolicy};
use proto::exec::{ExecCommand, TAKE_INPUT_KEY, USER_KEY};
use proto::layout;
use proto::version::{AGENT_BUILD_KEY, AGENT_ENDPOINT_KEY, AGENT_VERSION_KEY, PROTOCOL, PROTOCOL_KEY};
use serde_json::Value;

const UPDATE: &str = "UPDATE_SNAPSHOT";
/// Messages of others are theirs to keep.
const PACKAGES: &str = "openshell.";

type Lines = BTreeSet<String>;

#[test]
fn a_generation_only_grows() {
    let path = snapshot(PROTOCOL.newest);
    let recorded: Lines = std::fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
    let spoken = spoken();
    let generation = PROTOCOL.newest;
    let list = |lines: &[&String]| lines.iter().map(|line| format!("\n  {line}")).collect::<String>();
    let gone: Vec<_> = recorded.difference(&spoken).collect();
    assert!(
        gone.is_empty(),
        "generation {generation} does not say any more:{}\nPut it back, or raise PROTOCOL.newest in proto/src/version.rs.",
        list(&gone)
    );
    let new: Vec<_> = spoken.difference(&recorded).collect();
    if !new.is_empty() && std::env::var_os(UPDATE).is_some() {
        let text: String = spoken.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("failed to write {}: {error}", path.display()));
        return;
    }
    assert!(
        new.is_empty(),
        "{} does not have yet:{}\nAdd it with `{UPDATE}=1 cargo test -p proto --test wire`.",
        path.display(),
        list(&new)
    );
}

fn snapshot(generation: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("snapshots/generation-{generation}.txt"))
}

fn spoken() -> Lines {
    let mut lines = Lines::new();
    let descriptors = FileDescriptorSet::decode(proto::DESCRIPTORS).expect("descriptors");
    for file in descriptors.file.iter().filter(|file| file.package().starts_with(PACKAGES)) {
        let package = file.package();
        for service in &file.service {
            for method in &service.method {
                let stream = |streams: bool| if streams { "stream " } else { "" };
                lines.insert(format!(
                    "rpc {package}.{}/{} {}{} -> {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    plain(method.input_type()),
                    stream(method.server_streaming()),
                    plain(method.output_type()),
                ));
            }
        }
        file.message_type.iter().for_each(|message| add_message(&mut lines, package, message));
        file.enum_type.iter().for_each(|values| add_enum(&mut lines, package, values));
    }
    add_documents(&mut lines);
    add_names(&mut lines);
    lines
}

fn add_message(lines: &mut Lines, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    lines.insert(format!("message {name}"));
    for field in &message.field {
        let oneof = field.oneof_index.and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?));
        let oneof = oneof.map_or_else(String::new, |oneof| format!(" of {}", oneof.name()));
        let (label, of) = (label(field), of(field));
        lines.insert(format!("field {name} {} {} {label}{of}{oneof}", field.number(), field.name()));
    }
    message.nested_type.iter().for_each(|nested| add_message(lines, &name, nested));
    message.enum_type.iter().for_each(|values| add_enum(lines, &name, values));
}

fn label(field: &FieldDescriptorProto) -> &'static str {
    match field.label() {
        Label::Repeated => "repeated ",
        Label::Required => "required ",
        Label::Optional => "",
    }
}

fn of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum | Type::Group => plain(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn add_enum(lines: &mut Lines, scope: &str, values: &EnumDescriptorProto) {
    for value in &values.value {
        lines.insert(format!("value {scope}.{} {} {}", values.name(), value.number(), value.name()));
    }
}

/// Without the dot of an absolute name.
fn plain(name: &str) -> &str {
    name.trim_start_matches('.')
}

/// Where an agent looks, and by what names it asks.
fn add_names(lines: &mut Lines) {
    for (what, name) in [
        ("metadata", AGENT_VERSION_KEY),
        ("metadata", AGENT_BUILD_KEY),
        ("metadata", AGENT_ENDPOINT_KEY),
        ("metadata", PROTOCOL_KEY),
        ("metadata", USER_KEY),
        ("metadata", TAKE_INPUT_KEY),
        ("subsystem", layout::ATTACH_SUBSYSTEM),
        ("subsystem", layout::SFTP_SUBSYSTEM),
        ("subsystem", layout::DEBUG_SUBSYSTEM),
        ("share", layout::IDENTITY_TAG),
        ("file", layout::TOKEN_FILE),
        ("file", layout::BOOT_SPEC_FILE),
        ("file", layout::CA_FILE),
    ] {
        lines.insert(format!("{what} {name}"));
    }
    lines.insert(format!("port {}:{}", layout::HOST_CID, layout::CONTROL_PORT));
}

/// The documents that are no messages, each with everything in it that there can be.
fn add_documents(lines: &mut Lines) {
    let boot = BootSpec {
        sandbox_id: uuid::Uuid::nil(),
        instance_id: "1-a".into(),
        hostname: "a".into(),
        endpoint: "vsock://2:1".into(),
        endpoints: vec!["unix:///a".into()],
        wall_time_ms: 1,
        ssh_host_key: "key".to_owned().into(),
        user: DEFAULT_USER,
        main: Some(MainProcess {
            argv: vec!["a".into()],
            tty: true,
            await_attachment: true,
            restart: RestartPolicy::Always,
        }),
        needs_session: true,
        environment: [("*".to_owned(), "a".to_owned())].into(),
        services: vec![service()],
        workdir: Some("/a".into()),
        image_main: ImageMain { tty: true, restart: RestartPolicy::Always },
    };
    let exec = ExecCommand { argv: vec!["a".into()], workdir: Some("a".into()), user: Some("a".into()), login: true };
    for (name, document) in [("boot", serde_json::to_value(boot)), ("exec", serde_json::to_value(exec))] {
        add_members(lines, name, &document.expect("a document"));
    }
}

fn add_members(lines: &mut Lines, path: &str, value: &Value) {
    let kind = match value {
        Value::Null => panic!("{path} has no value in the sample: give it one"),
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    lines.insert(format!("json {path} {kind}"));
    match value {
        Value::Array(items) => items.iter().for_each(|item| add_members(lines, &format!("{path}[]"), item)),
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| add_members(lines, &format!("{path}.{name}"), member));
        }
        _ => {}
    }
}

#[test]
fn what_agents_depend_on_is_seen() {
    let spoken = spoken();
    for line in [
        "rpc openshell.v1.OpenShell/ConnectSupervisor stream openshell.v1.SupervisorMessage -> stream openshell.v1.GatewayMessage",
        "rpc openshell.vm.v1.Vm/Sync openshell.vm.v1.SyncRequest -> openshell.vm.v1.SyncReply",
        "field openshell.v1.SupervisorHello 2 instance_id string",
        "json boot.main.argv[] string",
        "json exec.workdir string",
    ] {
        assert!(spoken.contains(line), "{line}");
    }
    assert!(!spoken.iter().any(|line| line.contains("message google.")), "messages of others are theirs");
}

/// With everything that a service may have.
fn service() -> proto::service::Service {
    let text = "command = [\"a\"]\nuser = \"a\"\nworkdir = \"/a\"\nrequires = [\"a\"]\nenvironment = { \"*\" = \"a\" }";
    proto::service::parse("a.toml", text).expect("a declaration")
}
