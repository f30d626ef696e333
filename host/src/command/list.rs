//! `openshell sandbox list`

use std::time::SystemTime;

use clap::Args;
use proto::openshell::v1::{ListSandboxesRequest, Sandbox};

use super::arguments::{Format, Output, workspace};
use super::connect::{Client, Gateway, answer};
use super::console::Console;
use super::failure::CommandError;
use super::table;
use super::view::{self, SandboxView};

const PAGE: i32 = 100;

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    output: Output,
}

impl List {
    pub(crate) async fn run(&self, gateway: &Gateway, console: &mut Console) -> Result<u8, CommandError> {
        let mut client = gateway.client(console).await?;
        let sandboxes = all(&mut client).await?;
        let views = sandboxes.iter().map(SandboxView::from).collect::<Vec<_>>();
        let text = match self.output.output {
            Format::Json => view::json(&views),
            Format::Table => {
                let rows = sandboxes.iter().zip(&views).map(|(sandbox, view)| row(sandbox, view, SystemTime::now()));
                table::columns(&["NAME", "PHASE", "IMAGE", "CPUS", "MEMORY", "AGE"], &rows.collect::<Vec<_>>())
            }
        };
        console.line(&text).await.map_err(CommandError::output)?;
        Ok(0)
    }
}

fn row(sandbox: &Sandbox, view: &SandboxView, now: SystemTime) -> Vec<String> {
    let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        view.name.clone(),
        view.phase.to_owned(),
        or_none(&view.image),
        or_none(&view.cpus),
        or_none(&view.memory),
        view::age(sandbox, now),
    ]
}

/// The names of all sandboxes.
pub(crate) async fn names(client: &mut Client) -> Result<Vec<String>, CommandError> {
    let sandboxes = all(client).await?.into_iter();
    Ok(sandboxes.filter_map(|sandbox| Some(sandbox.metadata?.name)).collect())
}

async fn all(client: &mut Client) -> Result<Vec<Sandbox>, CommandError> {
    let act = "list sandboxes";
    let mut sandboxes = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListSandboxesRequest {
            page_size: PAGE,
            page_token,
            label_selector: String::new(),
            workspace_scope: workspace(),
        };
        let answer = answer(act, client.list_sandboxes(request)).await?;
        let page = answer;
        sandboxes.extend(page.sandboxes);
        if page.next_page_token.is_empty() {
            return Ok(sandboxes);
        }
        page_token = page.next_page_token;
    }
}
