#!/usr/bin/env bash
# Makes stages/drawing/viewer/bundle.js from viewer.js. Needs Node.js and npm; run it after every change of viewer.js.
set -euo pipefail
cd "$(dirname "$0")"
npm ci --ignore-scripts --no-audit --no-fund
source_digest=$(sha256sum viewer.js | cut -d' ' -f1)
npx esbuild viewer.js --bundle --minify --format=iife --target=es2021 --legal-comments=none \
  --banner:js="/* viewer.js $source_digest; three.js and uPlot, MIT licence, see NOTICE */" \
  --outfile=../../stages/drawing/viewer/bundle.js
