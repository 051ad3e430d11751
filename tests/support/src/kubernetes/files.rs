//! The files that the programs of a cluster share: certificates, keys, tokens and kubeconfigs.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Writes them and returns the token of who may do everything.
pub(super) fn write(dir: &Path, address: IpAddr) -> Result<String> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    let token = random()?;
    fs::write(dir.join("tokens.csv"), format!("{token},admin,admin,system:masters\n"))?;
    let audit = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],
        "rules":[{"level":"Metadata"}]}"#;
    fs::write(dir.join("audit-policy.json"), audit)?;
    // A configuration of our own: that of the machine may add extensions twice.
    let config = format!(
        "[req]\ndistinguished_name=name\n[name]\n\
         [ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n\
         [server]\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\n\
         subjectAltName=IP:{address},DNS:localhost,DNS:kubernetes.default.svc\n"
    );
    fs::write(dir.join("openssl.cnf"), config)?;
    let curve = "-pkeyopt ec_paramgen_curve:P-256";
    let request = format!("req -x509 -config openssl.cnf -newkey ec {curve} -nodes -days 30");
    for line in [
        format!("{request} -extensions ca -subj /CN=tests -keyout ca.key -out ca.crt"),
        format!(
            "{request} -extensions server -subj /CN=kube-apiserver -CA ca.crt -CAkey ca.key -keyout server.key \
             -out server.crt"
        ),
        format!("genpkey -algorithm EC {curve} -out accounts.key"),
        "pkey -in accounts.key -pubout -out accounts.pub".to_owned(),
    ] {
        openssl(dir, &line)?;
    }
    Ok(token)
}

/// A kubeconfig as JSON, which every reader of YAML takes.
pub(super) fn kubeconfig(url: &str, ca: &Path, token: &str) -> String {
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": ca}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    });
    format!("{config:#}\n")
}

fn openssl(dir: &Path, line: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    let out = command.args(line.split_whitespace()).current_dir(dir).output();
    let out = out.context("cannot start openssl, which makes the certificates of a test cluster")?;
    ensure!(out.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

fn random() -> Result<String> {
    let mut bytes = [0_u8; 16];
    let mut source = fs::File::open("/dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
