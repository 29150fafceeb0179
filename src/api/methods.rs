//! The names of our methods, for labels: a made-up method must not make a time series.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::proto::DESCRIPTORS;

/// Path to label, read off the contract: `/tokenwallet.v1.WalletService/GetAccessToken` to
/// `WalletService/GetAccessToken`.
static LABELS: LazyLock<HashMap<String, &'static str>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default().file;
    let services = files.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    let methods = services.flat_map(|(package, service)| {
        service.method.iter().map(move |method| {
            let label = format!("{}/{}", service.name(), method.name());
            (format!("/{package}.{label}"), &*label.leak())
        })
    });
    methods.collect()
});

/// The label of a call's path: the method's name, or `other` for health, reflection and whatever does not exist.
pub(super) fn label(path: &str) -> &'static str {
    LABELS.get(path).copied().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_methods_have_labels_and_made_up_ones_share_one() {
        assert_eq!(label("/tokenwallet.v1.WalletService/GetAccessToken"), "WalletService/GetAccessToken");
        assert_eq!(label("/tokenwallet.v1.WalletService/Made-up"), "other");
        assert_eq!(label("/grpc.health.v1.Health/Check"), "other");
    }
}
