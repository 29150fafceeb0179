//! Providers that an operator names by their endpoints.

use token_wallet::proto::v1;
use token_wallet::sandbox::DEFAULT_CLIENT_SECRET;

use super::harness::Harness;

impl Harness {
    /// A provider whose endpoints are the sandbox's, as this client of it.
    pub async fn create_own(&self, slug: &str, client_id: &str) {
        let base = self.sandbox.base_url();
        let request = v1::CreateProviderRequest {
            slug: slug.into(),
            catalog_entry: "oauth2".into(),
            client_id: client_id.into(),
            client_secret: DEFAULT_CLIENT_SECRET.into(),
            additional_scopes: vec!["openid".into(), "offline_access".into()],
            endpoints: Some(v1::ProviderEndpoints {
                authorization_url: format!("{base}/authorize"),
                token_url: format!("{base}/token"),
                userinfo_url: format!("{base}/userinfo"),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.providers().create_provider(request).await.unwrap();
    }

    /// Gives a provider with endpoints of its own another token URL, in its row: the RPC would not take each.
    pub async fn point(&self, slug: &str, token_url: &str) {
        let database = self.database().await;
        let stored = database.texts(&format!("SELECT endpoints FROM providers WHERE slug = '{slug}'")).await;
        let mut endpoints: serde_json::Value = serde_json::from_str(&stored[0]).unwrap();
        endpoints["token_url"] = token_url.into();
        let change = format!("UPDATE providers SET endpoints = '{endpoints}' WHERE slug = '{slug}'");
        assert_eq!(database.execute(&change).await, 1);
        // Another name, so that what is remembered of it is read anew.
        let request = v1::UpdateProviderRequest {
            provider: slug.into(),
            display_name: token_url.chars().take(40).collect(),
            update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into()] }),
            ..Default::default()
        };
        self.providers().update_provider(request).await.unwrap();
    }
}
