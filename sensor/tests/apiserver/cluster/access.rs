//! Who may do what: service accounts, their tokens and rights.
use std::path::{Path, PathBuf};

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    authorization::v1::SubjectAccessReview,
    core::v1::{Secret, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use super::{Cluster, objects::object, pki};

/// All of it happens in this namespace.
const NAMESPACE: &str = "default";

impl Cluster {
    /// Makes a service account, still without rights.
    pub(crate) fn create_service_account(&self, account: &str) {
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), NAMESPACE);
        let account = object(json!({"metadata": {"name": account}}));
        self.run(async move { accounts.create(&PostParams::default(), &account).await }).unwrap();
    }

    /// A service account's token, such as a kubelet projects into a pod; valid for `seconds`, of which the server
    /// grants at least 600.
    pub(crate) fn token(&self, account: &str, seconds: i64) -> String {
        self.request_token(account, json!({"audiences": [], "expirationSeconds": seconds}))
    }

    /// A token that is valid as long as the Secret `secret`, which is made for it; and ten seconds longer to a server
    /// that has just accepted it and remembers (TokenSuccessCacheTTL in
    /// pkg/kubeapiserver/options/authentication.go), unless that is restarted.
    pub(crate) fn token_bound_to(&self, account: &str, secret: &str) -> String {
        let secrets = Api::<Secret>::namespaced(self.client(), NAMESPACE);
        let made = object(json!({"metadata": {"name": secret}}));
        self.run(async move { secrets.create(&PostParams::default(), &made).await }).unwrap();
        let bound = json!({"kind": "Secret", "apiVersion": "v1", "name": secret});
        self.request_token(account, json!({"audiences": [], "boundObjectRef": bound}))
    }

    /// Deletes what a token is bound to.
    pub(crate) fn delete_secret(&self, secret: &str) {
        let (secrets, secret) = (Api::<Secret>::namespaced(self.client(), NAMESPACE), secret.to_owned());
        self.run(async move { secrets.delete(&secret, &DeleteParams::default()).await }).unwrap();
    }

    fn request_token(&self, account: &str, spec: serde_json::Value) -> String {
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), NAMESPACE);
        let (account, request) = (account.to_owned(), object::<TokenRequest>(json!({"spec": spec})));
        let answer = self
            .run(async move { accounts.create_token_request(&account, &PostParams::default(), &request).await });
        answer.unwrap().status.unwrap().token
    }

    /// A kubeconfig of whoever's token is in the file `token`, read anew as it changes.
    pub(crate) fn kubeconfig_for_token_file(&self, token: &Path) -> PathBuf {
        let name = format!("{}.conf", uuid::Uuid::new_v4());
        let user = format!(r#"{{"tokenFile": "{}"}}"#, token.display());
        pki::write_kubeconfig(self.directory.path(), &self.url(), &name, &user);
        self.file(&name)
    }

    /// Lets a service account list and watch pods and namespaces; returns when the server knows.
    pub(crate) fn grant(&self, account: &str, resources: &[&str]) {
        let role = object::<ClusterRole>(json!({
            "metadata": {"name": account},
            "rules": [{"apiGroups": [""], "resources": resources, "verbs": ["list", "watch"]}],
        }));
        let binding = object::<ClusterRoleBinding>(json!({
            "metadata": {"name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account},
            "subjects": [{"kind": "ServiceAccount", "namespace": NAMESPACE, "name": account}],
        }));
        let client = self.client();
        self.run(async move {
            let parameters = PostParams::default();
            Api::all(client.clone()).create(&parameters, &role).await?;
            Api::all(client).create(&parameters, &binding).await
        })
        .unwrap();
        self.wait_until("the account has its rights", || self.may_watch_pods(account));
    }

    /// Takes those rights away; returns when the server knows.
    pub(crate) fn revoke(&self, account: &str) {
        let (client, name) = (self.client(), account.to_owned());
        self.run(async move {
            let parameters = DeleteParams::default();
            Api::<ClusterRoleBinding>::all(client.clone()).delete(&name, &parameters).await?;
            Api::<ClusterRole>::all(client).delete(&name, &parameters).await
        })
        .unwrap();
        self.wait_until("the account has no rights", || !self.may_watch_pods(account));
    }

    fn may_watch_pods(&self, account: &str) -> bool {
        let question = object::<SubjectAccessReview>(json!({"spec": {
            "user": format!("system:serviceaccount:{NAMESPACE}:{account}"),
            "resourceAttributes": {"verb": "watch", "resource": "pods"},
        }}));
        let reviews = Api::<SubjectAccessReview>::all(self.client());
        let answer = self.run(async move { reviews.create(&PostParams::default(), &question).await });
        answer.unwrap().status.unwrap().allowed
    }
}
