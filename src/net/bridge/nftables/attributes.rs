//! Attributes and expressions of nf_tables as bytes, in the kernel's own terms (linux/netfilter/nf_tables.h).
//!
//! A register is 32 bits wide here; the first is 8.

use netlink_packet_core::NLA_F_NESTED;

/// The first 32-bit register.
pub const REGISTER: u32 = libc::NFT_REG32_00.cast_unsigned();

/// Attributes one after the other.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Attributes(pub Vec<u8>);

impl Attributes {
    /// Any value. Longer than an attribute can be is never asked for: texts are names, lists are cut in pieces.
    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number in network byte order.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// A text with its zero byte.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.put(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Attributes in an attribute.
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.put(kind | NLA_F_NESTED, &inner.0)
    }

    /// `NFTA_DATA_VALUE` in an attribute.
    pub fn data(self, kind: u16, value: &[u8]) -> Self {
        self.nest(kind, &Self::default().put(1, value))
    }
}

/// What a rule does, expression by expression.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Expressions(Attributes);

/// Hook-independent verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Return,
    Jump(&'static str),
}

impl Expressions {
    /// `NFTA_RULE_EXPRESSIONS`.
    pub fn attributes(&self) -> &Attributes {
        &self.0
    }

    fn expression(self, name: &str, data: &Attributes) -> Self {
        let mut expression = Attributes::default().text(1, name);
        if !data.0.is_empty() {
            expression = expression.nest(2, data);
        }
        Self(self.0.nest(1, &expression))
    }

    /// Loads something about the packet (`NFT_META_…`).
    pub fn meta(self, key: i32, register: u32) -> Self {
        let key = u32::try_from(key).unwrap_or_default();
        self.expression("meta", &Attributes::default().number(1, register).number(2, key))
    }

    /// Loads bytes of a header: base 1 is the network's, 2 the transport's.
    pub fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        let data = Attributes::default().number(1, register).number(2, base).number(3, offset).number(4, length);
        self.expression("payload", &data)
    }

    /// Goes on if the register has that value (or has not).
    pub fn compare(self, register: u32, is_equal: bool, value: &[u8]) -> Self {
        let operator = u32::from(!is_equal);
        self.expression("cmp", &Attributes::default().number(1, register).number(2, operator).data(3, value))
    }

    /// Keeps the bits of a mask.
    pub fn mask(self, register: u32, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let data = Attributes::default().number(1, register).number(2, register).number(3, length);
        self.expression("bitwise", &data.data(4, mask).data(5, &vec![0; mask.len()]))
    }

    /// Goes on if the map has the key that begins in the first register; its value takes the key's place.
    pub fn map(self, name: &str) -> Self {
        self.expression("lookup", &Attributes::default().text(1, name).number(2, REGISTER).number(3, REGISTER))
    }

    /// Goes on if the set has the key that begins in the first register, or has not.
    pub fn listed(self, set: &str, is_listed: bool) -> Self {
        // NFT_LOOKUP_F_INV.
        let flags = u32::from(!is_listed);
        self.expression("lookup", &Attributes::default().text(1, set).number(2, REGISTER).number(5, flags))
    }

    /// Goes on if the destination is an address of this host.
    pub fn reaching_this_host(self) -> Self {
        // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR is RTN_LOCAL.
        let fib = Attributes::default().number(1, REGISTER).number(2, 3).number(3, 2);
        self.expression("fib", &fib).compare(REGISTER, true, &2u32.to_ne_bytes())
    }

    /// Goes on if the connection's destination was translated (IPS_DST_NAT), or was not.
    pub fn translated(self, is_translated: bool) -> Self {
        const DST_NAT: u32 = 1 << 5;
        // NFT_CT_STATUS.
        let status = Attributes::default().number(1, REGISTER).number(2, 2);
        self.expression("ct", &status).mask(REGISTER, &DST_NAT.to_ne_bytes()).compare(
            REGISTER,
            !is_translated,
            &0u32.to_ne_bytes(),
        )
    }

    /// Sends the connection on to address and port in the first registers.
    pub fn translate_destination(self, is_v4: bool) -> Self {
        let (family, port) = if is_v4 { (libc::NFPROTO_IPV4, 1) } else { (libc::NFPROTO_IPV6, 4) };
        let family = u32::try_from(family).unwrap_or_default();
        let nat = Attributes::default().number(1, 1).number(2, family).number(3, REGISTER);
        self.expression("nat", &nat.number(5, REGISTER + port))
    }

    /// Gives the connection the address of the device it leaves by.
    pub fn masquerade(self) -> Self {
        self.expression("masq", &Attributes::default())
    }

    /// Ends the rule.
    pub fn verdict(self, verdict: Verdict) -> Self {
        let code = |code: i32| Attributes::default().put(1, &code.to_be_bytes());
        let verdict = match verdict {
            Verdict::Drop => code(libc::NF_DROP),
            Verdict::Return => code(libc::NFT_RETURN),
            Verdict::Jump(chain) => code(libc::NFT_JUMP).text(2, chain),
        };
        let data = Attributes::default().nest(2, &verdict);
        self.expression("immediate", &Attributes::default().number(1, 0).nest(2, &data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nest() {
        let bytes = Attributes::default().text(1, "ab").number(2, 1).0;
        assert_eq!(bytes, [7, 0, 1, 0, b'a', b'b', 0, 0, 8, 0, 2, 0, 0, 0, 0, 1]);
        let nested = Attributes::default().data(3, &[9]).0;
        assert_eq!(nested, [12, 0, 3, 0x80, 5, 0, 1, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn an_expression_is_a_name_and_data() {
        let bytes = Expressions::default().masquerade().0.0;
        assert_eq!(bytes, [16, 0, 1, 0x80, 9, 0, 1, 0, b'm', b'a', b's', b'q', 0, 0, 0, 0]);
    }
}
