'use strict'
// An ILP plugin for clients of a free host. It is connected to nobody; all it can be asked is which account it
// has (ILDCP, RFC 0031). A payment would be a mistake of the host's, and fails.

const OWN_ACCOUNT = 'peer.config'
const FULFILL = 13
const SCALE = 9

// variable-length octets of OER (RFC 0030); nothing here has 128 bytes, so the length is one byte
const octets = (bytes) => Buffer.concat([Buffer.from([bytes.length]), bytes])

const account = Buffer.concat([
  octets(Buffer.from('test.client')),
  Buffer.from([SCALE]),
  octets(Buffer.from('XRP'))
])
const answer = Buffer.concat([
  Buffer.from([FULFILL]),
  octets(Buffer.concat([Buffer.alloc(32), octets(account)]))
])

module.exports = class Plugin {
  async connect () {}
  async disconnect () {}
  isConnected () { return true }
  registerDataHandler () {}
  deregisterDataHandler () {}

  async sendData (packet) {
    if (!packet.includes(OWN_ACCOUNT)) throw new Error('a free host wants to be paid')
    return answer
  }
}
module.exports.version = 2
