//! `accounts`: users' accounts at providers.

use serde_json::{Value, json};

use super::remote::{PAGE_SIZE, Remote, Target};
use super::{link, output, remote};
use crate::proto::v1::external_account::State;
use crate::proto::v1::{DeleteExternalAccountRequest, ExternalAccount, ListExternalAccountsRequest};

/// Link, renew, list and unlink users' accounts at providers.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Link(link::Link),
    Reauthorize(link::Reauthorize),
    List(List),
    Unlink(Unlink),
}

/// List accounts, newest first, without the unlinked ones.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  token-wallet accounts list --user alice --provider github --json")]
pub(super) struct List {
    /// Only this user's
    #[arg(long)]
    user: Option<String>,

    /// Only those at this provider
    #[arg(long, value_name = "SLUG")]
    provider: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// Unlink an account: nobody gets its token any more. Unlinking twice is no error.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  token-wallet accounts unlink eac_01jd…")]
pub(super) struct Unlink {
    /// The account, `eac_…`, as `accounts list` shows it
    #[arg(value_name = "ACCOUNT")]
    account: String,

    #[command(flatten)]
    target: Target,
}

impl Command {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Link(link) => link.run().await,
            Self::Reauthorize(reauthorize) => reauthorize.run().await,
            Self::List(list) => list.run().await,
            Self::Unlink(unlink) => unlink.run().await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let filter = ListExternalAccountsRequest {
            user_id: self.user.unwrap_or_default(),
            provider: self.provider.unwrap_or_default(),
            ..ListExternalAccountsRequest::default()
        };
        let accounts = list(&self.target.remote()?, filter).await?;
        if self.json {
            return Ok(output::json(&accounts.iter().map(to_json).collect())?);
        }
        let rows: Vec<_> = accounts.into_iter().map(row).collect();
        Ok(output::table(["ACCOUNT", "USER", "PROVIDER", "STATE", "WHO", "TOKEN ENDS"], &rows)?)
    }
}

impl Unlink {
    async fn run(self) -> anyhow::Result<()> {
        let request = DeleteExternalAccountRequest { external_account_id: self.account };
        self.target.remote()?.accounts().delete_external_account(request).await?;
        output::note("unlinked");
        Ok(())
    }
}

/// All accounts that match, page by page.
pub(super) async fn list(remote: &Remote, filter: ListExternalAccountsRequest) -> anyhow::Result<Vec<ExternalAccount>> {
    remote::all(async |page_token| {
        let request = ListExternalAccountsRequest { page_size: PAGE_SIZE, page_token, ..filter.clone() };
        let page = remote.accounts().list_external_accounts(request).await?.into_inner();
        Ok((page.external_accounts, page.next_page_token))
    })
    .await
}

/// The account for programs.
pub(super) fn to_json(account: &ExternalAccount) -> Value {
    let identity = account.identity.clone().unwrap_or_default();
    json!({
        "id": account.id,
        "user_id": account.user_id,
        "provider": account.provider,
        "provider_account_id": account.provider_account_id,
        "state": state(account),
        "state_reason": account.state_reason,
        "identity": {
            "name": identity.name,
            "username": identity.username,
            "email": identity.email,
            "avatar_url": identity.avatar_url,
        },
        "granted_scopes": account.granted_scopes,
        "requested_scopes": account.requested_scopes,
        "refreshable": account.refreshable,
        "expire_time": output::json_time(account.expire_time),
        "last_refresh_time": output::json_time(account.last_refresh_time),
        "create_time": output::json_time(account.create_time),
        "is_default": account.is_default,
    })
}

/// The state in the words of the design: `active`, `reauthorization_required`, …
pub(super) fn state(account: &ExternalAccount) -> String {
    account.state().as_str_name().trim_start_matches("STATE_").to_lowercase()
}

/// Whether tokens of the account are served.
pub(super) fn is_active(account: &ExternalAccount) -> bool {
    account.state() == State::Active
}

/// Who it is, as far as the provider says.
pub(super) fn who(account: &ExternalAccount) -> &str {
    let identity = account.identity.as_ref();
    let names = identity.map(|identity| [&identity.username, &identity.email, &identity.name]);
    let best = names.into_iter().flatten().find(|name| !name.is_empty());
    best.unwrap_or(&account.provider_account_id)
}

fn row(account: ExternalAccount) -> [String; 6] {
    let (state, who) = (state(&account), who(&account).to_owned());
    let ends = account.expire_time.map_or_else(|| "never".to_owned(), |end| output::time(Some(end)));
    [account.id, account.user_id, account.provider, state, who, ends]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_told_in_its_own_word() {
        let account = |state: State| ExternalAccount { state: state.into(), ..ExternalAccount::default() };
        assert_eq!(state(&account(State::ReauthorizationRequired)), "reauthorization_required");
        assert!(is_active(&account(State::Active)) && !is_active(&account(State::Quarantined)));
    }

    #[test]
    fn an_account_is_called_by_the_best_name_known() {
        let mut account = ExternalAccount { provider_account_id: "17".to_owned(), ..ExternalAccount::default() };
        assert_eq!(who(&account), "17");
        account.identity = Some(crate::proto::v1::AccountIdentity { name: "Ada".to_owned(), ..Default::default() });
        assert_eq!(who(&account), "Ada");
    }
}
