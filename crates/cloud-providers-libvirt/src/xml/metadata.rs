//! What we write into a domain's definition about ourselves: the journal of an instance.

use std::collections::BTreeMap;

use cloud_providers::{CreateRequest, Scope, Token, tags};
use roxmltree::Node;

use super::{Element, all, attr, find};

/// Our namespace: libvirt keeps one element of each in a definition.
pub(crate) const NAMESPACE: &str = "https://github.com/cloud-providers/cloud-providers/libvirt/1";
const PREFIX: &str = "peerpod";

/// A volume that was, or is about to be, made for an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnVolume {
    pub(crate) pool: String,
    pub(crate) name: String,
}

/// Tags and volumes of an instance.
///
/// It is written with the definition, before the volumes exist, and is the only thing that deletion believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// The tags of `tags::for_request` and their readable copies.
    pub(crate) tags: BTreeMap<String, String>,
    /// In the order of creation. A name is never a path.
    pub(crate) volumes: Vec<OwnVolume>,
}

impl Metadata {
    /// Describes what is about to be made for `request`.
    pub(crate) fn for_request(request: &CreateRequest, created_unix: u64, volumes: Vec<OwnVolume>) -> Self {
        let tags = tags::for_request(request, created_unix)
            .into_iter()
            .chain(tags::readable_for_request(request))
            // Names of pods are text of users; what XML cannot carry is only a copy for people.
            .map(|(key, value)| (key.to_owned(), value.chars().filter(|c| !c.is_control()).collect()))
            .collect();
        Self { tags, volumes }
    }

    /// Returns a tag, empty when it is not there.
    pub(crate) fn tag(&self, key: &str) -> &str {
        self.tags.get(key).map(String::as_str).unwrap_or_default()
    }

    /// Returns whether this instance was made for exactly `token`.
    pub(crate) fn has_token(&self, token: &Token) -> bool {
        self.tag(tags::TOKEN) == token.tag_value()
    }

    /// Returns whether this instance belongs to `scope`.
    pub(crate) fn has_scope(&self, scope: &Scope) -> bool {
        self.tag(tags::SCOPE) == tags::encode_value(&scope.to_string())
    }

    /// Returns the full token, when its copy is there and agrees with the tag.
    pub(crate) fn token(&self) -> Option<Token> {
        let token: Token = self.tag(tags::TOKEN_TEXT).parse().ok()?;
        self.has_token(&token).then_some(token)
    }

    /// Returns the time of creation.
    pub(crate) fn created_unix(&self) -> Option<u64> {
        self.tag(tags::CREATED).parse().ok()
    }

    /// Returns the element below `metadata`.
    pub(super) fn element(&self) -> Element {
        let name = |name: &str| format!("{PREFIX}:{name}");
        let tags =
            self.tags.iter().map(|(key, value)| Element::new(name("tag")).attr("key", key).text(value));
        let volumes =
            self.volumes.iter().map(|v| Element::new(name("volume")).attr("pool", &v.pool).text(&v.name));
        Element::new(name("instance"))
            .attr(&format!("xmlns:{PREFIX}"), NAMESPACE)
            .children(tags)
            .children(volumes)
    }

    /// Reads our element from a domain's definition; `None` when it has none.
    pub(super) fn of_domain(domain: Node<'_, '_>) -> Option<Self> {
        find(domain, "metadata")?.children().find_map(Self::read)
    }

    fn read(node: Node<'_, '_>) -> Option<Self> {
        let own = node.tag_name().name() == "instance" && node.tag_name().namespace() == Some(NAMESPACE);
        own.then(|| Self {
            tags: all(node, "tag")
                .filter_map(|tag| Some((attr(tag, "", "key")?, tag.text().unwrap_or_default().to_owned())))
                .collect(),
            volumes: all(node, "volume")
                .filter_map(|v| Some(OwnVolume { pool: attr(v, "", "pool")?, name: v.text()?.to_owned() }))
                .filter(|v| !v.name.is_empty() && !v.name.contains('/'))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use cloud_providers::Unit;

    use super::*;

    fn request(hint: &str) -> CreateRequest {
        let token = Token::new(Scope::Cluster("c".into()), "s-1", 2);
        CreateRequest::new(token, Unit { id: "s-1".into(), name_hint: hint.into() }, "node")
    }

    fn read(xml: &str) -> Option<Metadata> {
        Metadata::read(roxmltree::Document::parse(xml).unwrap().root_element())
    }

    #[test]
    fn tags_and_volumes_read_back() {
        let request = request("a<b>&'\"\u{1}");
        let volume = OwnVolume { pool: "p & q".into(), name: "v-root.qcow2".into() };
        let metadata = Metadata::for_request(&request, 7, vec![volume]);
        let back = read(&metadata.element().to_xml().unwrap()).unwrap();
        assert_eq!(back, metadata);
        assert!(back.has_token(&request.token) && back.has_scope(&request.token.scope));
        assert_eq!(back.token().as_ref(), Some(&request.token));
        assert_eq!((back.created_unix(), back.tag(tags::UNIT_TEXT)), (Some(7), "a<b>&'\""));
        assert!(!back.has_scope(&Scope::Experiment("c".into())));
        assert!(!back.has_token(&Token::new(Scope::Cluster("c".into()), "s-1", 1)));
    }

    #[test]
    fn a_token_text_that_disagrees_with_its_hash_is_not_believed() {
        let mut metadata = Metadata::for_request(&request("x"), 7, vec![]);
        metadata.tags.insert(tags::TOKEN_TEXT.into(), "cluster:c/s-1/3".into());
        assert_eq!(metadata.token(), None);
    }

    #[test]
    fn the_prefix_is_not_what_counts() {
        let ours = format!("<x:instance xmlns:x='{NAMESPACE}'><x:tag key='k'>v</x:tag></x:instance>");
        let other = "<peerpod:instance xmlns:peerpod='urn:other'/>";
        let domain = format!("<domain><metadata>{other}{ours}</metadata></domain>");
        let document = roxmltree::Document::parse(&domain).unwrap();
        let found = Metadata::of_domain(document.root_element()).unwrap();
        assert_eq!(found.tag("k"), "v");
        assert!(read(other).is_none());
    }

    #[test]
    fn a_volume_that_is_a_path_is_not_ours() {
        let xml = format!(
            "<instance xmlns='{NAMESPACE}'><volume pool='p'>../x</volume><volume>y</volume><volume pool='p'/></instance>"
        );
        assert_eq!(read(&xml).unwrap().volumes, []);
    }
}
