// Bundles src/ and the libraries that it imports into marble_core/report/explorer.js and .css, and writes their licences to NOTICE.
// Beside them it copies axe, which the tests of the pages run, to tests/axe.min.js.
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const root = dirname(here);

// What the bundle was made of, so that a test can tell a bundle of yesterday's sources. The order is that of the names.
const hash = createHash("sha256");
for (const name of ["build.mjs", "package-lock.json", ...readdirSync(join(here, "src")).sort().map((n) => `src/${n}`)])
  hash.update(`${name}\n`).update(readFileSync(join(here, name)));

const built = await esbuild.build({
  entryPoints: [join(here, "src/explorer.js")],
  outfile: join(root, "marble_core/report/explorer.js"),
  banner: { js: `/* Built from explorer/ by: make explorer. sha256 of the sources: ${hash.digest("hex")}. Licences: NOTICE. */` },
  bundle: true,
  minify: true,
  target: "es2021",
  charset: "utf8",
  legalComments: "none", // NOTICE has all of them in full
  metafile: true,
  absWorkingDir: here,
});

const packages = new Set();
for (const path of Object.keys(built.metafile.inputs)) {
  const found = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (found) packages.add(found[1]);
}
const notices = [...packages].sort().map((name) => {
  const at = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(at, "package.json"), "utf8"));
  const file = ["LICENSE", "LICENSE.md", "LICENSE.txt", "license"].map((n) => join(at, n)).find(existsSync);
  return `${name} ${version} (${license})\n\n${file ? readFileSync(file, "utf8").trim() : "No text of the licence is in the package."}`;
});
// NOTICE begins with what people wrote; from this sentence on it is this file's.
const begin = "Third-party software that marble_core/report/explorer.js and explorer.css contain";
const line = "-".repeat(80);
const ours = readFileSync(join(root, "NOTICE"), "utf8").split(`\n${begin}`)[0].trimEnd();
writeFileSync(join(root, "NOTICE"), `${ours}\n\n${begin}. Written by: make explorer.\n\n${[...notices].join(`\n\n${line}\n\n`)}\n`);
copyFileSync(join(here, "node_modules/axe-core/axe.min.js"), join(root, "tests/axe.min.js"));
