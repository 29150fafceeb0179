//! `users`: who has accounts.

use serde_json::{Value, json};

use super::remote::{PAGE_SIZE, Target};
use super::{output, remote};
use crate::proto::v1::{DeleteUserRequest, GetUserRequest, ListUsersRequest, User};

/// Show, list and delete users.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Get(Get),
    List(List),
    Delete(Delete),
}

/// Show a user.
#[derive(clap::Args)]
pub(super) struct Get {
    /// The user
    user: String,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// List users by their ids.
#[derive(clap::Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// Delete a user with all accounts: their tokens are revoked, what is known of them is erased. Deleting twice is no error.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  token-wallet users delete alice")]
pub(super) struct Delete {
    /// The user
    user: String,

    #[command(flatten)]
    target: Target,
}

impl Command {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Get(get) => get.run().await,
            Self::List(list) => list.run().await,
            Self::Delete(delete) => delete.run().await,
        }
    }
}

impl Get {
    async fn run(self) -> anyhow::Result<()> {
        let answer = self.target.remote()?.users().get_user(GetUserRequest { user_id: self.user }).await?;
        let user = answer.into_inner().user.unwrap_or_default();
        if self.json {
            return Ok(output::json(&to_json(&user))?);
        }
        Ok(output::table(["USER", "SINCE"], &[row(&user)])?)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let all = remote::all(async |page_token| {
            let request = ListUsersRequest { page_size: PAGE_SIZE, page_token };
            let page = remote.users().list_users(request).await?.into_inner();
            Ok((page.users, page.next_page_token))
        })
        .await?;
        if self.json {
            return Ok(output::json(&all.iter().map(to_json).collect())?);
        }
        Ok(output::table(["USER", "SINCE"], &all.iter().map(row).collect::<Vec<_>>())?)
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        self.target.remote()?.users().delete_user(DeleteUserRequest { user_id: self.user }).await?;
        output::note("deleted");
        Ok(())
    }
}

fn row(user: &User) -> [String; 2] {
    [user.id.clone(), output::time(user.create_time)]
}

fn to_json(user: &User) -> Value {
    json!({ "id": user.id, "create_time": output::json_time(user.create_time) })
}
