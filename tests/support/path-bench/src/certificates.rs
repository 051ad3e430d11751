//! Certificates of one sandbox as the daemon makes them: the client's is its own authority.

use anyhow::{Context as _, Result};
use clap::{Arg, ArgMatches, Command};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

pub(crate) fn command() -> Command {
    Command::new("certificates")
        .about("Writes ca.pem, server.pem, server-key.pem, client.pem and client-key.pem")
        .arg(crate::path("folder", "Where they go"))
        .arg(Arg::new("name").long("name").default_value("podvm-path-bench").help("Name of the server"))
}

pub(crate) fn run(matches: &ArgMatches) -> Result<()> {
    let folder = crate::given_path(matches, "folder");
    let name = matches.get_one::<String>("name").expect("it has a default");
    let (ca_key, server_key, client_key) = (KeyPair::generate()?, KeyPair::generate()?, KeyPair::generate()?);
    let serving = ExtendedKeyUsagePurpose::ServerAuth;
    let ca_params =
        params("agent-protocol-forwarder", serving.clone(), IsCa::Ca(BasicConstraints::Unconstrained));
    let ca = ca_params.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca_params, ca_key);
    let mut server = params("agent-protocol-forwarder", serving, IsCa::ExplicitNoCa);
    // Another name than its issuer's: OpenSSL takes a certificate whose names are the same for one that signed itself.
    server.distinguished_name.push(DnType::CommonName, name.as_str());
    server.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into()?)];
    let server = server.signed_by(&server_key, &issuer)?;
    let client = params("cloud-api-adaptor", ExtendedKeyUsagePurpose::ClientAuth, IsCa::ExplicitNoCa);
    let client = client.self_signed(&client_key)?;
    for (file, pem) in [
        ("ca.pem", ca.pem()),
        ("server.pem", server.pem()),
        ("server-key.pem", server_key.serialize_pem()),
        ("client.pem", client.pem()),
        ("client-key.pem", client_key.serialize_pem()),
    ] {
        let path = folder.join(file);
        std::fs::write(&path, pem).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn params(organisation: &str, usage: ExtendedKeyUsagePurpose, ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, organisation);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.is_ca = ca;
    params
}
