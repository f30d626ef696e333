//! `openshell sandbox services`, and services that a sandbox is created with.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use proto::annotation;
use proto::openshell::vm::v1::{ListServicesRequest, ServiceStatus};
use proto::service::{EXTENSION, FILE_MAX, parse};
use serde::Serialize;

use super::Named;
use super::arguments::{Format, Output};
use super::connect::{Gateway, answer_within};
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use super::{table, view};

/// The gateway asks the agent.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(crate) struct Services {
    #[command(flatten)]
    sandbox: Named,
    #[command(flatten)]
    output: Output,
}

/// Field names are stable: scripts read them.
#[derive(Debug, Serialize)]
struct ServiceView {
    name: String,
    state: String,
    ready: bool,
    pid: Option<i32>,
    restarts: u32,
    since: Option<String>,
    last_exit: Option<i32>,
    message: String,
    declared_in: String,
}

impl From<ServiceStatus> for ServiceView {
    fn from(status: ServiceStatus) -> Self {
        Self {
            name: status.name,
            state: status.state,
            ready: status.ready,
            pid: (status.pid != 0).then_some(status.pid),
            restarts: status.restarts,
            since: status.since_time.as_ref().and_then(view::rfc3339),
            last_exit: status.last_exit,
            message: status.message,
            declared_in: status.declared_in,
        }
    }
}

impl ServiceView {
    fn row(&self) -> Vec<String> {
        let number = |number: Option<i32>| number.map(|number| number.to_string()).unwrap_or_default();
        vec![
            self.name.clone(),
            self.state.clone(),
            number(self.pid),
            self.restarts.to_string(),
            self.since.clone().unwrap_or_default(),
            number(self.last_exit),
            self.message.clone(),
        ]
    }
}

impl Services {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let name = &self.sandbox.name;
        let mut operator = gateway.operator(console).await?;
        let request = ListServicesRequest { sandbox: name.clone() };
        let act = format!("list the services of sandbox `{name}`");
        let reply = answer_within(ANSWER, &act, operator.list_services(request)).await?;
        let views: Vec<_> = reply.services.into_iter().map(ServiceView::from).collect();
        let text = match self.output.output {
            Format::Json => view::json(&views),
            Format::Table => {
                let header = ["NAME", "STATE", "PID", "RESTARTS", "SINCE", "EXIT", "MESSAGE"];
                table::columns(&header, &views.iter().map(ServiceView::row).collect::<Vec<_>>())
            }
        };
        console.line(&text).await.map_err(CommandError::output)?;
        Ok(0)
    }
}

/// The annotations that declare the services of these files. What can be seen to be wrong without the others is told
/// with the file's own path.
pub(crate) fn declared(files: &[PathBuf]) -> Result<HashMap<String, String>, CommandError> {
    let mut annotations = HashMap::new();
    for file in files {
        let path = file.display().to_string();
        let wrong = |cause: String| CommandError::new(ExitCode::Usage, format!("failed to read service {cause}"));
        let length = std::fs::metadata(file).map_err(|error| wrong(format!("{path}: {error}")))?.len();
        if length > FILE_MAX as u64 {
            return Err(wrong(format!("{path}: longer than {FILE_MAX} bytes")));
        }
        let text = std::fs::read_to_string(file).map_err(|error| wrong(format!("{path}: {error}")))?;
        let service = parse(&path, &text).map_err(|mistake| wrong(mistake.to_string()))?;
        if annotations.insert(format!("{}{}", annotation::SERVICE, service.name), text).is_some() {
            return Err(wrong(format!(
                "{path}: a service `{}` is given twice; {EXTENSION} files have its name",
                service.name
            )));
        }
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_annotations_and_mistakes_have_the_files_path() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(place.path().join(name), text).unwrap();
            place.path().join(name)
        };
        let (good, bad) = (file("db.toml", "command = [\"db\"]"), file("web.toml", "command = [\"web\"]\nwho = 1"));
        let annotations = declared(std::slice::from_ref(&good)).unwrap();
        assert_eq!(annotations["openshell.service/db"], "command = [\"db\"]");
        let refused = |files: &[PathBuf]| declared(files).unwrap_err().message;
        assert!(refused(std::slice::from_ref(&bad)).contains(&format!("{}:2: unknown field `who`", bad.display())));
        assert!(refused(&[good.clone(), good]).contains("given twice"));
        assert!(refused(&[place.path().join("none.toml")]).contains("none.toml"));
        assert_eq!(declared(&[]).unwrap().len(), 0);
    }
}
