//! An authority that vouches for clients: sensors, and gateways as their parents know them.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

pub struct ClientAuthority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A client's certificate and its key, both PEM.
pub struct ClientIdentity {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl ClientAuthority {
    pub fn create() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "skyway's tests, for clients");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate with the DNS name `name`.
    pub fn issue(&self, name: &str) -> ClientIdentity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a host name");
        params.distinguished_name.push(DnType::CommonName, "a client of skyway's tests");
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        ClientIdentity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}
