// node coder.mjs TABLES FOLDER: for each FOLDER/*.json {file, shape}, decode the payload of a .walloc file with the page's
// coder, write the codes, encode them again and write the file.
import fs from "node:fs";
import path from "node:path";

import { pack, unpack } from "../../page/container.js";
import { EntropyCoder } from "../../page/entropy.js";

const [tables, folder] = process.argv.slice(2);
const coder = new EntropyCoder(new Uint8Array(fs.readFileSync(tables)));
for (const name of fs.readdirSync(folder).filter((name) => name.endsWith(".walloc"))) {
  const { header, payload } = unpack(new Uint8Array(fs.readFileSync(path.join(folder, name))));
  const patch = 2 ** header.numLevels;
  const shape = [header.codedChannels, Math.ceil(header.height / patch), Math.ceil(header.width / patch)];
  const codes = coder.decode(payload, shape);
  fs.writeFileSync(path.join(folder, `${name}.codes`), codes);
  fs.writeFileSync(path.join(folder, `${name}.again`), pack(header, coder.encode(codes, shape)));
}
