package host

import "encoding/json"

// Gone is what a host reports of a thing that it has taken away.
var Gone = json.RawMessage(`{"Gone":true}`)
