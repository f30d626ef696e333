//! What a user may ask for, checked before anything is made.

use std::collections::{BTreeMap, HashMap};

use prost_types::{Struct, value::Kind};
use proto::boot::RestartPolicy;
use proto::budget::BOOT_SPEC_MAX;
use proto::openshell::v1::{CreateSandboxRequest, SandboxRestartPolicy, SandboxSpec, SandboxTemplate};
use proto::service::Service;
use proto::{annotation, service};
use serde::{Deserialize, Serialize};

use super::rules::{environment, name};
use crate::quantity;

/// A checked request: the shape that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// As the driver names images.
    pub image: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Main process; empty means that the sandbox idles until it is stopped.
    pub command: Vec<String>,
    /// Main process on a terminal.
    pub tty: bool,
    /// Whether the main process is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Main process waits for somebody to attach.
    pub await_attachment: bool,
    /// Added to the environment of main process and execs.
    pub environment: BTreeMap<String, String>,
    /// The user's own.
    pub labels: BTreeMap<String, String>,
    /// The user's own.
    pub annotations: BTreeMap<String, String>,
    /// Services that were given with the request, from its annotations.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Whose secrets the workload gets.
    #[serde(default)]
    pub providers: Vec<String>,
    /// By which the same request is known when it comes again; may be empty.
    #[serde(default)]
    pub request_id: String,
}

/// What stands where a request says nothing, and how far it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Image where none is named.
    pub image: Option<String>,
    /// CPUs where none are named.
    pub vcpus: u8,
    /// The most.
    pub max_vcpus: u8,
    /// Memory where none is named.
    pub memory_mib: u32,
    /// The most.
    pub max_memory_mib: u32,
}

const REQUEST_ID_MAX: usize = 128;
const PROVIDERS_MAX: usize = 16;
const LABELS_MAX: usize = 64;
const LABELS_BYTES_MAX: usize = 64 * 1024;
const MAIN_ARGS_MAX: usize = 256;
const MAIN_BYTES_MAX: usize = 256 * 1024;
/// What else a boot spec holds: ids, addresses and a key.
const BOOT_SPEC_REST: usize = 64 * 1024;

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// Path of the field in the request.
    pub field: &'static str,
    /// What it says, and the rule that it breaks.
    pub message: String,
}

impl Invalid {
    fn of(field: &'static str) -> impl FnOnce(String) -> Self {
        move |message| Self { field, message }
    }
}

/// Checks a create request.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(request: &CreateSandboxRequest, bounds: &Bounds) -> Result<Spec, Invalid> {
    name(&request.name).map_err(Invalid::of("name"))?;
    let empty = SandboxSpec::default();
    let spec = request.spec.as_ref().unwrap_or(&empty);
    let no_template = SandboxTemplate::default();
    let template = spec.template.as_ref().unwrap_or(&no_template);
    let mut variables: BTreeMap<String, String> = template.environment.clone().into_iter().collect();
    variables.extend(spec.environment.clone());
    environment(&variables, &[]).map_err(Invalid::of("spec.environment"))?;
    command(&spec.command).map_err(Invalid::of("spec.command"))?;
    if request.request_id.len() > REQUEST_ID_MAX {
        return Err(Invalid::of("request_id")(format!("request_id: at most {REQUEST_ID_MAX} bytes")));
    }
    few("labels", &request.labels).map_err(Invalid::of("labels"))?;
    few("annotations", &request.annotations).map_err(Invalid::of("annotations"))?;
    let services = services(&request.annotations).map_err(Invalid::of("annotations"))?;
    // JSON may need more bytes than the text has.
    let in_boot_spec =
        serde_json::to_vec(&(&variables, &spec.command, &services)).map_or(usize::MAX, |json| json.len());
    if in_boot_spec > BOOT_SPEC_MAX - BOOT_SPEC_REST {
        return Err(Invalid::of("spec.environment")(format!(
            "environment, command and services: {in_boot_spec} bytes as JSON; at most {} fit into a boot spec",
            BOOT_SPEC_MAX - BOOT_SPEC_REST
        )));
    }
    Ok(Spec {
        image: image(&template.image, bounds).map_err(Invalid::of("spec.template.image"))?,
        vcpus: vcpus(template, bounds).map_err(Invalid::of("spec.template.resources"))?,
        memory_mib: memory(template, bounds).map_err(Invalid::of("spec.template.resources"))?,
        command: spec.command.clone(),
        tty: spec.tty,
        restart: restart(spec.restart_policy).map_err(Invalid::of("spec.restart_policy"))?,
        await_attachment: request.await_main_process_attachment && !spec.command.is_empty(),
        environment: variables,
        labels: request.labels.clone().into_iter().collect(),
        annotations: request.annotations.clone().into_iter().collect(),
        services,
        request_id: request.request_id.clone(),
        providers: providers(&spec.providers).map_err(Invalid::of("spec.providers"))?,
    })
}

fn few(what: &str, map: &HashMap<String, String>) -> Result<(), String> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if map.len() > LABELS_MAX || bytes > LABELS_BYTES_MAX {
        return Err(format!("{what}: at most {LABELS_MAX} with {LABELS_BYTES_MAX} bytes in all"));
    }
    Ok(())
}

/// One for each annotation that declares one, by name.
fn services(annotations: &HashMap<String, String>) -> Result<Vec<Service>, String> {
    let (mut services, mut mistakes) = (vec![], vec![]);
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(annotation::SERVICE) else { continue };
        match service::parse(&format!("{name}{}", service::EXTENSION), text) {
            Ok(service) => services.push(service),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    services.sort_by(|one, other| one.name.cmp(&other.name));
    if mistakes.is_empty() {
        mistakes = service::order(&services, service::Scope::WithoutImage).err().unwrap_or_default();
    }
    mistakes.sort_by(|one, other| one.file.cmp(&other.file));
    if mistakes.is_empty() { Ok(services) } else { Err(service::listed(&mistakes)) }
}

fn restart(policy: i32) -> Result<RestartPolicy, String> {
    match SandboxRestartPolicy::try_from(policy) {
        Ok(SandboxRestartPolicy::Unspecified | SandboxRestartPolicy::Never) => Ok(RestartPolicy::Never),
        Ok(SandboxRestartPolicy::OnFailure) => Ok(RestartPolicy::OnFailure),
        Ok(SandboxRestartPolicy::Always) => Ok(RestartPolicy::Always),
        Err(_) => Err(format!("restart_policy: {policy} is none; write 1 (never), 2 (on failure) or 3 (always)")),
    }
}

/// Each once, in their order.
fn providers(names: &[String]) -> Result<Vec<String>, String> {
    if names.len() > PROVIDERS_MAX {
        return Err(format!("providers: at most {PROVIDERS_MAX}"));
    }
    for (index, one) in names.iter().enumerate() {
        name(one).map_err(|error| format!("providers: {error}"))?;
        if names[..index].contains(one) {
            return Err(format!("providers: `{one}` is named twice"));
        }
    }
    Ok(names.to_vec())
}

fn command(argv: &[String]) -> Result<(), String> {
    let bytes: usize = argv.iter().map(String::len).sum();
    if argv.len() > MAIN_ARGS_MAX || bytes > MAIN_BYTES_MAX {
        return Err(format!("command: at most {MAIN_ARGS_MAX} arguments of {MAIN_BYTES_MAX} bytes in all"));
    }
    if argv.first().is_some_and(String::is_empty) || argv.iter().any(|arg| arg.contains('\0')) {
        return Err("command: the program must be named, and no argument may hold a NUL byte".into());
    }
    Ok(())
}

fn image(asked: &str, bounds: &Bounds) -> Result<String, String> {
    match (asked, &bounds.image) {
        ("", Some(default)) => Ok(default.clone()),
        ("", None) => Err("image: none named and no default_image configured; name one with --from".into()),
        (asked, _) => Ok(asked.into()),
    }
}

fn vcpus(template: &SandboxTemplate, bounds: &Bounds) -> Result<u8, String> {
    let Some(text) = limit(template, "cpu") else { return Ok(bounds.vcpus) };
    let cpus = quantity::cpus(&text).map_err(|error| format!("cpus: {error}"))?;
    if cpus > bounds.max_vcpus {
        return Err(format!("cpus: {text} is more than {}, the most of this gateway", bounds.max_vcpus));
    }
    Ok(cpus)
}

fn memory(template: &SandboxTemplate, bounds: &Bounds) -> Result<u32, String> {
    let Some(text) = limit(template, "memory") else { return Ok(bounds.memory_mib) };
    let mib = quantity::memory_mib(&text).map_err(|error| format!("memory: {error}"))?;
    if mib > bounds.max_memory_mib {
        return Err(format!("memory: {text} is more than {}Mi, the most of this gateway", bounds.max_memory_mib));
    }
    Ok(mib)
}

/// `resources.limits.KEY`, or `resources.requests.KEY`.
fn limit(template: &SandboxTemplate, key: &str) -> Option<String> {
    let resources = template.resources.as_ref()?;
    ["limits", "requests"].iter().find_map(|section| {
        let Kind::StructValue(Struct { fields }) = resources.fields.get(*section)?.kind.as_ref()? else { return None };
        match fields.get(key)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text.clone()),
            Kind::NumberValue(number) => Some(number.to_string()),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Value;
    use proto::budget::VARIABLE_VALUE_MAX;

    fn bounds() -> Bounds {
        Bounds { image: Some("debian".into()), vcpus: 1, max_vcpus: 4, memory_mib: 512, max_memory_mib: 8192 }
    }

    fn request(cpu: Option<&str>, memory: Option<&str>) -> CreateSandboxRequest {
        let text = |s: &str| Value { kind: Some(Kind::StringValue(s.into())) };
        let fields = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_string(), text(value?))))
            .collect();
        let limits = Value { kind: Some(Kind::StructValue(Struct { fields })) };
        let resources = Struct { fields: [("limits".to_string(), limits)].into() };
        let template = SandboxTemplate { resources: Some(resources), ..Default::default() };
        let spec = SandboxSpec { template: Some(template), ..Default::default() };
        CreateSandboxRequest { name: "dev".into(), spec: Some(spec), ..Default::default() }
    }

    #[test]
    fn quantities_are_honoured() {
        for (cpu, memory, vcpus, mib) in [
            (None, None, 1, 512),
            (Some("500m"), Some("4Gi"), 1, 4096),
            (Some("1500m"), Some("268435457"), 2, 257),
            (Some("2"), Some("256Mi"), 2, 256),
            (Some("4"), Some("1G"), 4, 954),
        ] {
            let spec = check(&request(cpu, memory), &bounds()).unwrap();
            assert_eq!((spec.vcpus, spec.memory_mib), (vcpus, mib), "{cpu:?} {memory:?}");
            assert_eq!(spec.image, "debian");
        }
    }

    #[test]
    fn quantities_out_of_range_are_refused_by_name() {
        for (cpu, memory, word) in [
            (Some("0"), None, "cpus"),
            (Some("5"), None, "cpus"),
            (Some("-1"), None, "cpus"),
            (Some("NaN"), None, "cpus"),
            (Some("two"), None, "cpus"),
            (None, Some("64Mi"), "memory"),
            (None, Some("1Ti"), "memory"),
            (None, Some("99999999999999999999Gi"), "memory"),
            (None, Some("lots"), "memory"),
        ] {
            let error = check(&request(cpu, memory), &bounds()).unwrap_err();
            assert!(
                error.field == "spec.template.resources" && error.message.starts_with(word),
                "{cpu:?} {memory:?}: {error}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_into_a_boot_spec_is_refused_at_once() {
        // Each of these bytes is six in JSON.
        let value = "\u{1}".repeat(VARIABLE_VALUE_MAX);
        let environment = (0..40).map(|number| (format!("K{number}"), value.clone())).collect();
        let spec = SandboxSpec { environment, ..Default::default() };
        let request = CreateSandboxRequest { name: "dev".into(), spec: Some(spec), ..Default::default() };
        let error = check(&request, &bounds()).unwrap_err();
        assert!(error.field == "spec.environment" && error.message.contains("fit into a boot spec"), "{error}");
    }

    #[test]
    fn services_come_by_annotations_and_are_refused_with_file_and_line() {
        let with = |declared: &[(&str, &str)]| {
            let key = |name: &str| format!("{}{name}", annotation::SERVICE);
            let mut request = request(None, None);
            request.annotations = declared.iter().map(|(name, text)| (key(name), (*text).to_owned())).collect();
            request.annotations.insert("my/own".to_owned(), "no service".to_owned());
            check(&request, &bounds()).map_err(|invalid| (invalid.field, invalid.message))
        };
        let plain = "command = [\"a\"]\n";
        let needs = |on: &str| format!("{plain}requires = [\"{on}\"]");
        let spec = with(&[("web", &needs("db")), ("db", plain), ("app", &needs("image:net"))]).unwrap();
        let names: Vec<&str> = spec.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["app", "db", "web"]);
        for (declared, words) in [
            (vec![("web", needs("db"))], "web.toml:2: there is no service `db`"),
            (vec![("a", needs("b")), ("b", needs("a"))], "a.toml:2: services wait for each other"),
            (vec![("b", "command = 1".to_owned()), ("a", needs(""))], "b.toml:1: "),
            (vec![("No Name", plain.to_owned())], "cannot be named"),
        ] {
            let declared: Vec<_> = declared.iter().map(|(name, text)| (*name, text.as_str())).collect();
            let (field, message) = with(&declared).unwrap_err();
            assert!(field == "annotations" && message.contains(words), "{message}");
        }
    }

    #[test]
    fn providers_are_named_once() {
        let named = |names: &[&str]| providers(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(named(&["git", "ai"]), Ok(vec!["git".to_owned(), "ai".to_owned()]));
        assert!(named(&["git", "git"]).unwrap_err().contains("named twice"));
        assert!(named(&["Git"]).is_err());
        let many: Vec<_> = (0..=PROVIDERS_MAX).map(|number| format!("p{number}")).collect();
        assert!(providers(&many).unwrap_err().contains("at most"));
    }
}
