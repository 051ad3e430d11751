//! What a guest is given goes to its files, and into no output of the programs that put it there.

use std::{fs, path::Path, process::Command};

use cloud_providers::{cloud_config::CloudConfig, initdata::InitData};
use test_support::Canaries;

/// Runs a program of the guest with everything switched on that it can say.
fn output(program: &str, args: &[&str], env: &[(&str, &str)]) -> Vec<u8> {
    let out =
        Command::new(program).args(args).envs(env.iter().copied()).env("RUST_LOG", "trace").output().unwrap();
    [out.stdout, out.stderr].concat()
}

struct Given {
    canaries: Canaries,
    cloud_config: String,
}

/// User data as a node sends it.
fn given() -> Given {
    let mut canaries = Canaries::new();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    canaries.add_pem("the guest's key", &key);
    let auth = format!("{{\"auths\":{{\"r\":{{\"auth\":\"{}\"}}}}}}", canaries.plant("a pull secret"));
    let token = canaries.plant("init-data");
    let toml = format!(
        "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = ''\n\"cdh.toml\" = '''\nkey = \"{token}\"\n'''\n"
    );
    let apf = serde_json::json!({ "pod-name": "web", "tls-server-cert": "c", "tls-server-key": key });
    let cloud_config = CloudConfig::new()
        .with_file("/run/peerpod/apf.json", apf.to_string())
        .with_file("/run/peerpod/auth.json", auth)
        .with_file("/run/peerpod/initdata", InitData::accept(&toml).unwrap().encode())
        .to_text()
        .unwrap();
    Given { canaries, cloud_config }
}

/// Has the user data brought to its files below `root`.
fn provision(root: &Path, user_data: &str) -> Vec<u8> {
    let source = root.join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("user-data"), user_data).unwrap();
    let target = root.join("root");
    fs::create_dir_all(&target).unwrap();
    let (source, target) = (source.to_str().unwrap(), target.to_str().unwrap());
    let args = ["provision-files", "-verbose", "-user-data-dir", source, "-root", target, "-t", "2"];
    output(env!("CARGO_BIN_EXE_process-user-data"), &args, &[])
}

#[test]
fn process_user_data_shows_nothing_of_what_it_writes() {
    let Given { canaries, cloud_config } = given();
    assert_eq!(canaries.found_in(cloud_config.as_bytes()).len(), 3, "the secrets did go in");
    let dir = tempfile::tempdir().unwrap();
    let said = provision(dir.path(), &cloud_config);
    canaries.assert_not_in("the log", &said);
    let written = fs::read(dir.path().join("root/run/peerpod/apf.json")).unwrap_or_else(|error| {
        panic!("nothing was provisioned: {error}: {}", String::from_utf8_lossy(&said));
    });
    assert!(!canaries.found_in(&written).is_empty());
}

#[test]
fn user_data_that_cannot_be_read_is_not_quoted() {
    let Given { canaries, cloud_config } = given();
    for broken in [
        cloud_config.replace("write_files", "write_files: ["),
        cloud_config.replace("path:", "path"),
        cloud_config[..cloud_config.len() / 2].to_owned(),
        cloud_config.replacen("#cloud-config", "#cloud-konfig", 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let said = provision(dir.path(), &broken);
        canaries.assert_not_in("the error", said);
    }
}

#[test]
fn the_forwarder_does_not_show_its_configuration() {
    let Given { canaries, .. } = given();
    let dir = tempfile::tempdir().unwrap();
    let mut canaries = canaries;
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    canaries.add_pem("the key of the configuration", &key);
    for text in [
        serde_json::json!({ "tls-server-key": key, "tls-server-cert": "no PEM", "tls-client-ca": "no PEM" })
            .to_string(),
        serde_json::json!({ "tls-server-key": { "x": key } }).to_string(),
        format!("{{\"tls-server-key\": {key:?}, "),
        format!("{{\"tls-min-version\": {key:?}}}"),
    ] {
        let path = dir.path().join("apf.json");
        fs::write(&path, &text).unwrap();
        let path = path.to_str().unwrap();
        let said = output(
            env!("CARGO_BIN_EXE_agent-protocol-forwarder"),
            &["-config", path, "-listen", "127.0.0.1:0", "-kata-agent-socket", "/nonexistent/agent.sock"],
            &[],
        );
        assert!(!said.is_empty(), "it refuses {text}");
        canaries.assert_not_in("the forwarder's error", said);
    }
}
