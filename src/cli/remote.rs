//! The gRPC client of the commands: where the wallet is, with which key, and what its errors mean.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;
use zeroize::Zeroizing;

use super::dev_file::{DEFAULT_FOLDER, DevFile};
use super::output::plain;
use crate::config;
use crate::domain::reason::Meaning;
use crate::domain::secret::ApiKey;
use crate::proto::v1::api_client_service_client::ApiClientServiceClient;
use crate::proto::v1::event_service_client::EventServiceClient;
use crate::proto::v1::external_account_service_client::ExternalAccountServiceClient;
use crate::proto::v1::provider_service_client::ProviderServiceClient;
use crate::proto::v1::redirect_url_service_client::RedirectUrlServiceClient;
use crate::proto::v1::user_service_client::UserServiceClient;
use crate::proto::v1::wallet_service_client::WalletServiceClient;

/// Where the wallet is if nobody says otherwise.
pub(super) const DEFAULT_ADDR: &str = "127.0.0.1:50051";

/// The variable that may hold the API key.
const KEY_VARIABLE: &str = "TOKEN_WALLET_API_KEY";

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take; a little more than the wallet itself allows.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How many items of a list are asked for at once.
pub(super) const PAGE_SIZE: i32 = 200;

/// Which wallet to call.
#[derive(clap::Args)]
#[command(next_help_heading = "Which wallet to call")]
pub(super) struct Target {
    /// Its gRPC address, HOST:PORT [default: that of .token-wallet/dev.json, else 127.0.0.1:50051]
    #[arg(long, env = "TOKEN_WALLET_ADDR", value_name = "ADDR")]
    addr: Option<String>,

    /// A file with the API key; else the variable `TOKEN_WALLET_API_KEY`, else .token-wallet/dev.json
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

/// A wallet that can be called.
pub(super) struct Remote {
    channel: Channel,
    bearer: Bearer,
}

/// What the generated clients send through.
type Authorized = InterceptedService<Channel, Bearer>;

/// Adds the API key to each call.
#[derive(Clone)]
pub(super) struct Bearer(MetadataValue<Ascii>);

/// What a failed call means to the person at the terminal.
pub(super) struct Explanation {
    /// The reason, such as `ACCOUNT_NOT_LINKED`, if the wallet gave one.
    pub(super) reason: Option<String>,
    /// The wallet's sentence and what it says of single fields.
    pub(super) text: String,
    /// How to cure it.
    pub(super) hint: Option<String>,
}

impl Target {
    /// Finds address and key. Nothing is sent yet.
    pub(super) fn remote(&self) -> anyhow::Result<Remote> {
        let dev = DevFile::read(Path::new(DEFAULT_FOLDER))?;
        let dev_addr = dev.as_ref().map(|dev| dev.grpc.to_string());
        let addr = self.addr.clone().or_else(|| dev_addr.clone()).unwrap_or_else(|| DEFAULT_ADDR.to_owned());
        let key = match (&self.api_key_file, config::variable(KEY_VARIABLE)) {
            (Some(path), _) => key_file(path)?,
            (None, Some(key)) => {
                ApiKey::new(key.into_string().map_err(|_| anyhow!("{KEY_VARIABLE} does not hold an API key"))?)
            }
            // The key of `dev` goes to `dev` only.
            (None, None) => match dev {
                Some(dev) if dev_addr.as_ref() == Some(&addr) => dev.api_key,
                Some(_) => bail!(
                    "no API key for {addr}: name its file with --api-key-file, or set {KEY_VARIABLE} (the key of \
                     `token-wallet dev` goes to its own address alone)"
                ),
                None => bail!(
                    "no API key: name its file with --api-key-file, set {KEY_VARIABLE}, or call from the folder that \
                     `token-wallet dev` runs in"
                ),
            },
        };
        Remote::new(&addr, &key)
    }
}

impl Remote {
    /// A wallet at `HOST:PORT`. It is connected to with the first call.
    pub(super) fn new(addr: &str, key: &ApiKey) -> anyhow::Result<Self> {
        Ok(Self { channel: channel(addr)?, bearer: Bearer::new(key)? })
    }

    pub(super) fn wallet(&self) -> WalletServiceClient<Authorized> {
        WalletServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub(super) fn accounts(&self) -> ExternalAccountServiceClient<Authorized> {
        ExternalAccountServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub(super) fn users(&self) -> UserServiceClient<Authorized> {
        UserServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub(super) fn providers(&self) -> ProviderServiceClient<Authorized> {
        ProviderServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub(super) fn redirect_urls(&self) -> RedirectUrlServiceClient<Authorized> {
        RedirectUrlServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub(super) fn events(&self) -> EventServiceClient<Authorized> {
        EventServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub(super) fn clients(&self) -> ApiClientServiceClient<Authorized> {
        ApiClientServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }
}

impl Bearer {
    fn new(key: &ApiKey) -> anyhow::Result<Self> {
        let header = Zeroizing::new(format!("Bearer {}", key.expose()));
        // The error would quote what is no key, and may be another secret.
        let mut value =
            MetadataValue::try_from(header.as_str()).map_err(|_| anyhow!("what was given is no API key"))?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} ({reason})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// A connection to `HOST:PORT`, which comes about with its first call.
fn channel(addr: &str) -> anyhow::Result<Channel> {
    let endpoint = match addr.split_once("://") {
        None => Endpoint::from_shared(format!("http://{addr}")),
        Some(("http", _)) => Endpoint::from_shared(addr.to_owned()),
        Some(_) => bail!("the address must be HOST:PORT"),
    };
    let endpoint = endpoint.context("the address must be HOST:PORT")?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT).connect_lazy())
}

/// Whether the wallet at `HOST:PORT` says that it serves.
pub(super) async fn serves(addr: &str) -> anyhow::Result<bool> {
    let answer = HealthClient::new(channel(addr)?).check(HealthCheckRequest::default()).await?;
    Ok(answer.into_inner().status() == ServingStatus::Serving)
}

/// A whole list: `page` fetches what a page token stands for, with the token of the page after it.
pub(super) async fn all<T>(
    mut page: impl AsyncFnMut(String) -> anyhow::Result<(Vec<T>, String)>,
) -> anyhow::Result<Vec<T>> {
    let (mut items, mut page_token) = (Vec::new(), String::new());
    loop {
        let (more, next) = page(page_token).await?;
        items.extend(more);
        if next.is_empty() {
            return Ok(items);
        }
        page_token = next;
    }
}

/// What `error` means, if it is a wallet's answer, or the want of one.
pub(super) fn explain(error: &anyhow::Error) -> Option<Explanation> {
    let status = error.downcast_ref::<Status>()?;
    let Some(info) = status.get_details_error_info() else {
        return Some(without_reason(status));
    };
    let mut text = plain(status.message());
    if let Some(request_id) = info.metadata.get("request_id") {
        let _ = write!(text, ", request {}", plain(request_id));
    }
    let violations = status.get_details_bad_request().into_iter().flat_map(|details| details.field_violations);
    // A single one is often the message itself.
    for violation in violations.filter(|violation| !status.message().contains(&violation.description)) {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {}: {}", plain(&violation.field), plain(&violation.description));
    }
    let wait = status.get_details_retry_info().and_then(|details| details.retry_delay);
    let hint = match (wait, Meaning::of(&info.reason)) {
        (Some(wait), _) => Some(format!("try again in {}", humantime::format_duration(wait))),
        (None, meaning) => meaning.map(|meaning| meaning.cure.to_owned()),
    };
    Some(Explanation { reason: Some(plain(&info.reason)), text, hint })
}

/// The reason of a wallet's error, such as `PROVIDER_NOT_FOUND`.
pub(super) fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// Whether what ended a stream may have passed soon: nobody is there, or the wallet says so.
pub(super) fn may_pass(error: &anyhow::Error) -> bool {
    let Some(status) = error.downcast_ref::<Status>() else { return false };
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Internal => true,
        // A connection that broke.
        Code::Unknown | Code::Cancelled => reason(status).is_none(),
        _ => false,
    }
}

/// An answer that is not the wallet's own: nobody is there, or somebody else is.
fn without_reason(status: &Status) -> Explanation {
    let (text, hint) = match status.code() {
        Code::Unavailable => ("no wallet answers there".to_owned(), "is it running, and is --addr its gRPC address?"),
        Code::Cancelled | Code::DeadlineExceeded => {
            ("the wallet did not answer in time".to_owned(), "try again; the wallet's log says what it waited for")
        }
        code => (format!("{} ({code:?})", plain(status.message())), "is --addr the gRPC address of a token wallet?"),
    };
    Explanation { reason: None, text, hint: Some(hint.to_owned()) }
}

fn key_file(path: &Path) -> anyhow::Result<ApiKey> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the API key in {}", path.display()))?;
    let text = Zeroizing::new(text);
    Ok(ApiKey::new(text.trim_end_matches(['\r', '\n'])))
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn explained(code: Code, message: &str, details: ErrorDetails) -> Explanation {
        explain(&Status::with_error_details(code, message, details).into()).unwrap()
    }

    #[test]
    fn an_error_is_told_with_its_reason_and_its_cure() {
        let details = ErrorDetails::with_error_info("ACCOUNT_NOT_LINKED", "tokenwallet", []);
        let told = explained(Code::NotFound, "the user has no account at this provider", details);
        assert_eq!(told.to_string(), "the user has no account at this provider (ACCOUNT_NOT_LINKED)");
        assert_eq!(told.hint.as_deref(), Some("link one: StartLink, or `token-wallet accounts link USER PROVIDER`"));
    }

    #[test]
    fn fields_and_waiting_times_are_told() {
        let mut details = ErrorDetails::with_error_info("INVALID_FIELD", "tokenwallet", []);
        details.add_bad_request_violation("user_id", "must not be empty\x1b");
        let told = explained(Code::InvalidArgument, "user_id must not be empty\x1b", details.clone());
        assert_eq!(told.to_string(), "user_id must not be empty\u{fffd} (INVALID_FIELD)");
        let told = explained(Code::InvalidArgument, "a field cannot be used", details);
        assert_eq!(told.to_string(), "a field cannot be used\n  user_id: must not be empty\u{fffd} (INVALID_FIELD)");
        let mut details = ErrorDetails::with_error_info("PROVIDER_UNAVAILABLE", "tokenwallet", []);
        details.set_retry_info(Some(Duration::from_secs(5)));
        let told = explained(Code::Unavailable, "the provider is not available", details);
        assert_eq!(told.hint.as_deref(), Some("try again in 5s"));
    }

    #[tokio::test]
    async fn what_is_no_key_is_not_quoted() {
        let error = Remote::new(DEFAULT_ADDR, &ApiKey::new("line\nbreak")).err().unwrap();
        assert!(!format!("{error:?}").contains("break"), "{error:?}");
    }

    #[tokio::test]
    async fn only_plain_addresses_are_taken() {
        let key = ApiKey::new("twk_x");
        assert!(Remote::new("127.0.0.1:1", &key).is_ok());
        assert!(Remote::new("http://[::1]:1", &key).is_ok());
        assert!(Remote::new("https://wallet.example.com", &key).is_err());
        assert!(Remote::new("not an address", &key).is_err());
    }
}
