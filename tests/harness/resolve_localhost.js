'use strict'
// RFC 6761 6.3: names below localhost are this machine. Not every system's resolver knows; node asks that.

const dns = require('dns')
const { lookup } = dns

dns.lookup = (name, options, done) => {
  const own = name.endsWith('.localhost') ? 'localhost' : name
  return typeof options === 'function' ? lookup(own, options) : lookup(own, { ...options, family: 4 }, done)
}
