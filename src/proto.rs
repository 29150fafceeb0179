//! The generated contract, and `Debug` without secrets for its messages.

use std::fmt;

/// `tokenwallet.v1`: the messages, servers and clients of proto/.
#[expect(clippy::pedantic, reason = "generated; the comments stand in proto/")]
pub mod v1 {
    tonic::include_proto!("tokenwallet.v1");
}

/// The compiled descriptors, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Stands where a secret is.
const REDACTED: &str = "…";

impl fmt::Debug for v1::GetAccessTokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetAccessTokenRequest")
            .field("user_id", &self.user_id)
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::GetAccessTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetAccessTokenResponse")
            .field("access_token", &REDACTED)
            .field("expire_time", &self.expire_time)
            .field("external_account_id", &self.external_account_id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::AuthorizationRequired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizationRequired").field("flow_id", &self.flow_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::StartLinkResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartLinkResponse").field("flow_id", &self.flow_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::StartReauthorizationResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartReauthorizationResponse").field("flow_id", &self.flow_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::CompleteLinkRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompleteLinkRequest").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::complete_link_request::Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ticket(_) => "Ticket(…)",
            Self::RedirectedUrl(_) => "RedirectedUrl(…)",
        })
    }
}

impl fmt::Debug for v1::CreateProviderRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateProviderRequest").field("slug", &self.slug).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::CreateProviderSecretRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateProviderSecretRequest").field("provider", &self.provider).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::CreateApiClientResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateApiClientResponse").field("api_client", &self.api_client).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("info", &self.info).field("secret", &REDACTED).finish()
    }
}
