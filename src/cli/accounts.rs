//! `accounts`: users' accounts at providers.

use serde_json::{Value, json};

use super::remote::{PAGE_SIZE, Remote, Target};
use super::{link, output, remote};
use crate::proto::v1::external_account::State;
use crate::proto::v1::{
    DeleteExternalAccountRequest, ExternalAccount, ListExternalAccountsRequest, ListUserProvidersRequest,
    UpdateExternalAccountRequest, UserProvider,
};

/// Link, renew, list, change and unlink users' accounts at providers.
#[derive(clap::Subcommand)]
pub(super) enum Command {
    Link(link::Link),
    Reauthorize(link::Reauthorize),
    List(List),
    Providers(Providers),
    Update(Update),
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

/// List the providers with a user's accounts there, and whether one can be linked.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  token-wallet accounts providers alice")]
pub(super) struct Providers {
    /// The user, by the id that your services use
    #[arg(value_name = "USER")]
    user: String,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: Target,
}

/// Change an account's label, or make it its user's default at the provider.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  token-wallet accounts update eac_01jd… --default\n  \
                  token-wallet accounts update eac_01jd… --label 'at work'")]
#[group(id = "change", multiple = true, required = true, args = ["label", "no_label", "default", "no_default"])]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(super) struct Update {
    /// The account, `eac_…`, as `accounts list` shows it
    #[arg(value_name = "ACCOUNT")]
    account: String,

    /// A name for it, up to 128 characters
    #[arg(long, conflicts_with = "no_label")]
    label: Option<String>,

    /// Take its label away
    #[arg(long)]
    no_label: bool,

    /// Make it the one used when a get names none; the default so far is it no more
    #[arg(long, conflicts_with = "no_default")]
    default: bool,

    /// Make it the default no more
    #[arg(long)]
    no_default: bool,

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
            Self::Providers(providers) => providers.run().await,
            Self::Update(update) => update.run().await,
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
        Ok(output::table(["ACCOUNT", "USER", "PROVIDER", "STATE", "DEFAULT", "WHO", "TOKEN ENDS"], &rows)?)
    }
}

impl Providers {
    async fn run(self) -> anyhow::Result<()> {
        let remote = self.target.remote()?;
        let providers = remote::all(async |page_token| {
            let request = ListUserProvidersRequest { user_id: self.user.clone(), page_size: PAGE_SIZE, page_token };
            let page = remote.accounts().list_user_providers(request).await?.into_inner();
            Ok((page.user_providers, page.next_page_token))
        })
        .await?;
        if self.json {
            return Ok(output::json(&providers.iter().map(provider_json).collect())?);
        }
        let rows: Vec<_> = providers.iter().flat_map(provider_rows).collect();
        Ok(output::table(["PROVIDER", "NAME", "CONNECTABLE", "ACCOUNT", "STATE", "WHO"], &rows)?)
    }
}

impl Update {
    async fn run(self) -> anyhow::Result<()> {
        let (label, default) = (self.label.is_some() || self.no_label, self.default || self.no_default);
        let paths = [("label", label), ("is_default", default)].into_iter().filter(|(_, named)| *named);
        let request = UpdateExternalAccountRequest {
            external_account_id: self.account,
            update_mask: Some(prost_types::FieldMask { paths: paths.map(|(path, _)| path.to_owned()).collect() }),
            label: self.label.unwrap_or_default(),
            is_default: self.default,
            etag: String::new(),
        };
        let answer = self.target.remote()?.accounts().update_external_account(request).await?.into_inner();
        let account = answer.external_account.unwrap_or_default();
        if self.json {
            return Ok(output::json(&to_json(&account))?);
        }
        output::note("updated");
        Ok(())
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
        "label": account.label,
        "etag": account.etag,
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

/// Who it is: its label, or what the provider says.
pub(super) fn who(account: &ExternalAccount) -> &str {
    if !account.label.is_empty() {
        return &account.label;
    }
    let identity = account.identity.as_ref();
    let names = identity.map(|identity| [&identity.username, &identity.email, &identity.name]);
    let best = names.into_iter().flatten().find(|name| !name.is_empty());
    best.unwrap_or(&account.provider_account_id)
}

fn provider_json(of: &UserProvider) -> Value {
    json!({
        "provider": of.provider,
        "display_name": of.display_name,
        "external_accounts": of.external_accounts.iter().map(to_json).collect::<Value>(),
        "connectable": of.connectable,
    })
}

/// One line an account; one for a provider without.
fn provider_rows(of: &UserProvider) -> Vec<[String; 6]> {
    let connectable = if of.connectable { "yes" } else { "no" };
    let line = |account: String, state: String, who: String| {
        [of.provider.clone(), of.display_name.clone(), connectable.to_owned(), account, state, who]
    };
    if of.external_accounts.is_empty() {
        return vec![line(String::new(), String::new(), String::new())];
    }
    let accounts = of.external_accounts.iter();
    accounts.map(|account| line(account.id.clone(), state(account), who(account).to_owned())).collect()
}

fn row(account: ExternalAccount) -> [String; 7] {
    let (state, who) = (state(&account), who(&account).to_owned());
    let ends = account.expire_time.map_or_else(|| "never".to_owned(), |end| output::time(Some(end)));
    let default = if account.is_default { "yes" } else { "-" };
    [account.id, account.user_id, account.provider, state, default.to_owned(), who, ends]
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
    fn a_list_says_which_account_is_the_default() {
        let account = |is_default| ExternalAccount { is_default, ..ExternalAccount::default() };
        assert_eq!([row(account(true))[4].clone(), row(account(false))[4].clone()], ["yes", "-"]);
    }

    #[test]
    fn an_account_is_called_by_the_best_name_known() {
        let mut account = ExternalAccount { provider_account_id: "17".to_owned(), ..ExternalAccount::default() };
        assert_eq!(who(&account), "17");
        account.identity = Some(crate::proto::v1::AccountIdentity { name: "Ada".to_owned(), ..Default::default() });
        assert_eq!(who(&account), "Ada");
        account.label = "at work".to_owned();
        assert_eq!(who(&account), "at work");
    }
}
