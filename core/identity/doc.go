// Package identity knows who asks and what they may do: domains, projects, users, groups,
// roles, credentials and tokens. How a token or a signature is spelled is a dialect's business.
package identity
