//! `events`: what happened.

use std::time::Duration;

use serde_json::{Value, json};

use super::remote::{PAGE_SIZE, Remote, Target};
use super::stop::Stop;
use super::{output, remote};
use crate::proto::v1::{Event, EventFilter, EventType, ListEventsRequest, WatchEventsRequest};

/// How soon a stream that ended is begun again, and how much later at most if that fails again and again.
const SOON: Duration = Duration::from_millis(250);
const LATER: Duration = Duration::from_secs(5);

/// List events, or follow them as they happen.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    List(List),
    Tail(Tail),
}

/// List the events that are kept, oldest first.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  token-wallet events list --user alice --type account.unlinked
  token-wallet events list --from CURSOR              those since then

Standard error ends with the command that tells what happens next.")]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,

    /// Begin behind this cursor [default: with the oldest event that is kept]
    #[arg(long, value_name = "CURSOR")]
    from: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// Print events as they happen, one a line, until Ctrl-C; where the wallet goes away, it is waited for.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  token-wallet events tail
  token-wallet events tail --json --from CURSOR       go on where another one ended")]
pub(super) struct Tail {
    #[command(flatten)]
    filter: Filter,

    /// Begin behind this cursor [default: from now on]
    #[arg(long, value_name = "CURSOR")]
    from: Option<String>,

    /// Print JSON, one object a line, each with the cursor behind it
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

#[derive(clap::Args)]
struct Filter {
    /// Only this user's
    #[arg(long)]
    user: Option<String>,

    /// Only those at this provider
    #[arg(long, value_name = "SLUG")]
    provider: Option<String>,

    /// Only those of this type, such as `account.unlinked`; may be repeated
    #[arg(long = "type", value_name = "TYPE", value_parser = event_type)]
    types: Vec<EventType>,
}

impl Command {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run().await,
            Self::Tail(tail) => tail.run().await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let (remote, filter) = (self.target.remote()?, self.filter.to_wire());
        let from = self.from.unwrap_or_default();
        let mut behind = String::new();
        let all = remote::all(async |page_token| {
            let (filter, cursor) = (Some(filter.clone()), from.clone());
            let request = ListEventsRequest { filter, cursor, page_size: PAGE_SIZE, page_token };
            let page = remote.events().list_events(request).await?.into_inner();
            behind = page.cursor;
            Ok((page.events, page.next_page_token))
        })
        .await?;
        if self.json {
            output::json(&all.iter().map(to_json).collect())?;
        } else {
            let rows: Vec<_> = all.iter().map(row).collect();
            output::table(["TIME", "TYPE", "USER", "PROVIDER", "ABOUT", "REASON"], &rows)?;
        }
        go_on_with(&behind);
        Ok(())
    }
}

impl Tail {
    async fn run(self) -> anyhow::Result<()> {
        let mut stop = Stop::listen()?;
        let (mut cursor, mut heard) = (self.from.clone().unwrap_or_default(), false);
        let ended = tokio::select! {
            ended = self.follow(&mut cursor, &mut heard) => ended,
            () = stop.told() => Ok(()),
        };
        // A cursor that the wallet did not take is none to go on with.
        if heard {
            go_on_with(&cursor);
        }
        ended
    }

    /// Follows stream after stream, each from the cursor of the one before.
    async fn follow(&self, cursor: &mut String, heard: &mut bool) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let mut wait = SOON;
        loop {
            let before = cursor.clone();
            if let Err(error) = self.stream(&remote, cursor, heard).await
                && !(*heard && remote::may_pass(&error))
            {
                return Err(error);
            }
            wait = if *cursor == before { (wait * 2).min(LATER) } else { SOON };
            tokio::time::sleep(wait).await;
        }
    }

    /// Prints one stream until it ends.
    async fn stream(&self, remote: &Remote, cursor: &mut String, heard: &mut bool) -> anyhow::Result<()> {
        let request = WatchEventsRequest { filter: Some(self.filter.to_wire()), cursor: cursor.clone() };
        let mut messages = remote.events().watch_events(request).await?.into_inner();
        while let Some(message) = messages.message().await? {
            *heard = true;
            if let Some(event) = &message.event {
                self.print(event, &message.cursor)?;
            }
            *cursor = message.cursor;
        }
        Ok(())
    }

    fn print(&self, event: &Event, cursor: &str) -> anyhow::Result<()> {
        if !self.json {
            return Ok(output::line(row(event).map(|cell| output::plain(&cell)).join("  "))?);
        }
        let mut line = to_json(event);
        line["cursor"] = cursor.into();
        Ok(output::line(line)?)
    }
}

impl Filter {
    fn to_wire(&self) -> EventFilter {
        EventFilter {
            user_id: self.user.clone().unwrap_or_default(),
            provider: self.provider.clone().unwrap_or_default(),
            types: self.types.iter().map(|wanted| i32::from(*wanted)).collect(),
        }
    }
}

fn go_on_with(cursor: &str) {
    output::note(format_args!("go on with: token-wallet events tail --from {cursor}"));
}

/// `account.unlinked` of the type's name on the wire: what is before the first underscore is the thing.
fn type_name(told: EventType) -> String {
    let name = told.as_str_name().trim_start_matches("EVENT_TYPE_").to_lowercase();
    name.replacen('_', ".", 1)
}

fn event_type(name: &str) -> Result<EventType, String> {
    let known = EventType::from_str_name(&format!("EVENT_TYPE_{}", name.replace('.', "_").to_uppercase()));
    known
        .filter(|known| *known != EventType::Unspecified && type_name(*known) == name)
        .ok_or_else(|| "no such type; docs/events.md lists them, such as account.unlinked".to_owned())
}

fn to_json(event: &Event) -> Value {
    json!({
        "id": event.id,
        "type": type_name(event.r#type()),
        "time": output::json_time(event.time),
        "user_id": event.user_id,
        "provider": event.provider,
        "external_account_id": event.external_account_id,
        "flow_id": event.flow_id,
        "reason": event.reason,
        "security": event.security,
    })
}

fn row(event: &Event) -> [String; 6] {
    let about = if event.external_account_id.is_empty() { &event.flow_id } else { &event.external_account_id };
    let [user, provider, about, reason] = [&event.user_id, &event.provider, about, &event.reason].map(Clone::clone);
    [output::time(event.time), type_name(event.r#type()), user, provider, about, reason]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::EventKind;

    #[test]
    fn types_are_named_as_the_store_names_them() {
        for kind in EventKind::ALL {
            assert_eq!(event_type(kind.as_str()).map(type_name).as_deref(), Ok(kind.as_str()));
        }
        for none in ["", "unspecified", "account_linked", "account.made_up", "ACCOUNT.LINKED"] {
            assert!(event_type(none).is_err(), "{none}");
        }
    }
}
