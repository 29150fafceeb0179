//! Secret values: zeroized when dropped, without `Debug`, `Display` or `Serialize`, compared in constant time.

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Declares a secret text type. Two of the same type compare in constant time; nothing prints them.
macro_rules! secret {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Zeroizing<String>);

        impl $name {
            /// Takes the secret over; the text is wiped when this is dropped.
            pub fn new(text: impl Into<String>) -> Self {
                Self(Zeroizing::new(text.into()))
            }

            /// The secret itself, for the one place that must send or seal it.
            pub fn expose(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
            }
        }

        impl Eq for $name {}
    )*};
}

secret! {
    /// What the provider's API is called with (RFC 6749 section 1.4).
    AccessToken;
    /// What the next access token is redeemed with (RFC 6749 section 1.5).
    RefreshToken;
    /// The one-time code of the provider's callback (RFC 6749 section 4.1.2).
    AuthorizationCode;
    /// The PKCE verifier kept until the code is redeemed (RFC 7636 section 4.1).
    PkceVerifier;
    /// Our password at the provider's token endpoint (RFC 6749 section 2.3.1).
    ClientSecret;
    /// The `state` of an authorization URL (RFC 6749 section 10.12): 256 random bits, base64url.
    FlowState;
    /// The single-use secret that ends a flow: 256 random bits, base64url.
    Ticket;
    /// A whole API key, `twk_…`, as its client sends it.
    ApiKey;
}
