//! Init-data on its way from the pod to the guest.

use cloud_providers::initdata::InitData;

/// Accepts init-data as TOML text or in its encoded form, checks it, and returns the encoded form.
///
/// # Errors
///
/// What is wrong with it. Init-data without `aa.toml` is refused here, because the guest's attestation agent would
/// never start and the pod would only fail after the whole wait for its agent.
pub fn encode_checked(text: &str) -> Result<String, cloud_providers::Error> {
    let data = InitData::accept(text)?;
    if !data.has_aa() {
        return Err(cloud_providers::Error::config(
            "init-data has no aa.toml, without which the attestation agent of the guest never starts",
        )
        .with("add", "\"aa.toml\" under [data], it may be empty"));
    }
    Ok(data.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = ''\n";

    #[test]
    fn both_forms_give_the_same_init_data() {
        let encoded = encode_checked(TOML).unwrap();
        assert_eq!(InitData::accept(&encode_checked(&encoded).unwrap()).unwrap().toml(), TOML);
    }

    #[test]
    fn init_data_without_aa_toml_is_refused_with_the_remedy() {
        let text = encode_checked(&TOML.replace("aa.toml", "cdh.toml")).unwrap_err().to_string();
        assert!(text.contains("aa.toml"), "{text}");
        assert!(encode_checked("not init-data").is_err());
    }
}
