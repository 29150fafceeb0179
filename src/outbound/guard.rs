//! Which URLs and addresses may be called: nothing that a request from our network could reach and its writer could not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::{OutboundConfig, OutboundConfigError};

/// Why a URL may not be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not https; plain http is for loopback in development instances.
    #[error("must be https")]
    Scheme,
    /// `user:password@` in front of the host.
    #[error("must not contain user information")]
    UserInfo,
    /// A `#fragment`.
    #[error("must not contain a fragment")]
    Fragment,
    /// The host is a special-use address that is not allowed.
    #[error("must not be at a private, local or otherwise special-use address")]
    Address,
}

/// A name resolved to nothing that may be called.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("all addresses are special-use")]
pub(super) struct AddressRefused;

/// The rules. Names are resolved here and nowhere else, so the addresses that were checked are those that are connected
/// to.
pub(super) struct Guard(Arc<Rules>);

struct Rules {
    allow: Vec<IpNet>,
    development: bool,
}

/// Special-use IPv4 networks (IANA IPv4 Special-Purpose Address Registry), multicast, reserved, and the one cloud
/// metadata address that looks public.
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([168, 63, 129, 16], 32),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([224, 0, 0, 0], 3),
];

/// Global unicast IPv6. All else is special: unspecified, loopback, IPv4 in disguise (`::ffff:0:0/96`, NAT64), unique
/// local, link-local, multicast.
const UNICAST_V6: Ipv6Net = v6([0x2000, 0], 3);

/// What is special within it (IANA IPv6 Special-Purpose Address Registry): protocol assignments with Teredo,
/// documentation, 6to4.
const SPECIAL_V6: [Ipv6Net; 4] =
    [v6([0x2001, 0], 23), v6([0x2001, 0xdb8], 32), v6([0x2002, 0], 16), v6([0x3fff, 0], 20)];

impl Guard {
    pub(super) fn new(config: &OutboundConfig) -> Result<Self, OutboundConfigError> {
        let allow = config.allow.iter().map(|text| network(text)).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Rules { allow, development: config.development })))
    }

    pub(super) fn check(&self, url: &Url) -> Result<(), UrlError> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(UrlError::Fragment);
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) | None => None,
        };
        let loopback = address.map_or(url.host_str() == Some(LOCALHOST), |address| address.is_loopback());
        match url.scheme() {
            "https" => {}
            "http" if self.0.development && loopback => {}
            _ => return Err(UrlError::Scheme),
        }
        // A literal address never meets the resolver.
        if address.is_some_and(|address| !self.0.admit(address)) { Err(UrlError::Address) } else { Ok(()) }
    }
}

/// The one name that may be called by plain http in development; it is loopback whatever a name server says (RFC 6761
/// section 6.3).
const LOCALHOST: &str = "localhost";

impl Rules {
    fn admit(&self, address: IpAddr) -> bool {
        (self.development && address.is_loopback())
            || self.allow.iter().any(|network| network.contains(&address))
            || !is_special(address)
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let local = name.as_str().eq_ignore_ascii_case(LOCALHOST);
            let admitted: Vec<SocketAddr> =
                found.filter(|found| rules.admit(found.ip()) && (!local || found.ip().is_loopback())).collect();
            if admitted.is_empty() { Err(AddressRefused.into()) } else { Ok(Box::new(admitted.into_iter()) as Addrs) }
        })
    }
}

fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => SPECIAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            !UNICAST_V6.contains(&address) || SPECIAL_V6.iter().any(|network| network.contains(&address))
        }
    }
}

fn network(text: &str) -> Result<IpNet, OutboundConfigError> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| OutboundConfigError::Network(text.to_owned()))
}

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b]: [u16; 2], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(development: bool, allow: &[&str]) -> Guard {
        let allow = allow.iter().map(|&text| text.to_owned()).collect();
        Guard::new(&OutboundConfig { allow, development, ..OutboundConfig::default() }).unwrap()
    }

    fn check(guard: &Guard, url: &str) -> Result<(), UrlError> {
        guard.check(&Url::parse(url).unwrap())
    }

    #[test]
    fn special_addresses_are_refused_in_every_spelling() {
        for host in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.9.9.9",
            "127.1",
            "2130706433",
            "0x7f.1",
            "017700000001",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "127.0.0.1.",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:8.8.8.8]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[100::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[3fff::1]",
            "[5f00::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
        ] {
            assert_eq!(check(&guard(false, &[]), &format!("https://{host}/token")), Err(UrlError::Address), "{host}");
        }
    }

    #[test]
    fn public_addresses_and_names_may_be_called() {
        for host in
            ["8.8.8.8", "172.32.0.1", "100.128.0.1", "[2606:4700::1111]", "[2a00::1]", "example.com", "localhost"]
        {
            assert_eq!(check(&guard(false, &[]), &format!("https://{host}/token")), Ok(()), "{host}");
        }
    }

    #[test]
    fn plain_http_is_for_loopback_in_development() {
        let development = guard(true, &["10.0.0.0/8"]);
        for good in ["http://127.0.0.1:8080/x", "http://[::1]/", "http://localhost:1/", "https://10.1.2.3/"] {
            assert_eq!(check(&development, good), Ok(()), "{good}");
        }
        for bad in ["http://10.1.2.3/", "http://example.com/", "http://localhost.example.com/", "ftp://127.0.0.1/"] {
            assert_eq!(check(&development, bad), Err(UrlError::Scheme), "{bad}");
        }
        assert_eq!(check(&development, "https://169.254.169.254/"), Err(UrlError::Address));
        assert_eq!(check(&guard(false, &[]), "http://127.0.0.1/"), Err(UrlError::Scheme));
    }

    #[test]
    fn user_information_and_fragments_are_refused() {
        let guard = guard(false, &[]);
        assert_eq!(check(&guard, "https://user@example.com/"), Err(UrlError::UserInfo));
        assert_eq!(check(&guard, "https://:pw@example.com/"), Err(UrlError::UserInfo));
        assert_eq!(check(&guard, "https://example.com/#"), Err(UrlError::Fragment));
    }

    #[test]
    fn allowed_networks_are_networks_or_addresses() {
        let guard = guard(false, &["10.1.0.0/16", "fd00::7"]);
        assert_eq!(check(&guard, "https://10.1.2.3/"), Ok(()));
        assert_eq!(check(&guard, "https://[fd00::7]/"), Ok(()));
        assert_eq!(check(&guard, "https://10.2.0.1/"), Err(UrlError::Address));
        let bad = OutboundConfig { allow: vec!["10.1.0.0/33".to_owned()], ..OutboundConfig::default() };
        assert!(matches!(Guard::new(&bad), Err(OutboundConfigError::Network(text)) if text == "10.1.0.0/33"));
    }
}
