// One face an image, by a package of Node.js: `node node.mjs FOLDER PACKAGE`; for each image a line of JSON, then its RGB bytes.
import { readFileSync } from 'fs';
import { createRequire } from 'module';
import { join } from 'path';
import { fileURLToPath } from 'url';

const [folder, name] = process.argv.slice(2);
const require = createRequire(join(folder, 'package.json'));
const log = console.log;
console.log = console.info = console.warn = console.error;   // the output is for answers alone
const wasm = join(folder, 'node_modules/@tensorflow/tfjs-backend-wasm/dist/');

const fetched = globalThis.fetch;
globalThis.fetch = async (url, ...more) =>   // Node.js fetches no files
  `${url}`.startsWith('file:') ? new Response(readFileSync(fileURLToPath(`${url}`))) : fetched(url, ...more);

async function faceApi() {
  require('@tensorflow/tfjs-backend-wasm').setWasmPaths(wasm);
  const api = require('@vladmandic/face-api/dist/face-api.node-wasm.js');
  await api.tf.setBackend('wasm');
  await api.tf.ready();
  const models = join(folder, 'node_modules/@vladmandic/face-api/model');
  for (const net of ['ssdMobilenetv1', 'faceLandmark68Net', 'faceExpressionNet']) await api.nets[net].loadFromDisk(models);
  const order = ['neutral', 'happy', 'sad', 'angry', 'fearful', 'disgusted', 'surprised'];
  const options = new api.SsdMobilenetv1Options({ minConfidence: 0.5 });
  return async (pixels, height, width, cropped) => {
    const image = api.tf.tensor3d(pixels, [height, width, 3], 'int32');
    let said = null;
    if (cropped) said = await api.nets.faceExpressionNet.predictExpressions(image);
    else {
      const faces = await api.detectAllFaces(image, options).withFaceLandmarks().withFaceExpressions();
      const area = (face) => face.detection.box.width * face.detection.box.height;
      said = faces.sort((a, b) => area(b) - area(a))[0]?.expressions ?? null;
    }
    image.dispose();
    return said && order.map((k) => said[k]);
  };
}

async function human() {
  const root = join(folder, 'node_modules/@vladmandic/human');
  const { Human } = require(join(root, 'dist/human.node-wasm.js'));
  const off = { enabled: false };
  const config = { backend: 'wasm', wasmPath: wasm, modelBasePath: `file://${root}/models/`, cacheSensitivity: 0, debug: false,
    face: { enabled: true, detector: { maxDetected: 10 }, emotion: { enabled: true, minConfidence: 0, skipFrames: 0, skipTime: 0 },
      description: off, iris: off, antispoof: off, liveness: off }, body: off, hand: off, gesture: off, object: off, segmentation: off };
  const it = new Human(config);
  await it.load();
  const { tf } = it;
  const net = await tf.loadGraphModel(`file://${root}/models/emotion.json`);
  const order = ['angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral'];
  const crop = (image) => tf.tidy(() => {  // what its emotion module does with a face
    const small = tf.image.resizeBilinear(tf.expandDims(tf.div(image, 255), 0), net.inputs[0].shape.slice(1, 3), false);
    const grey = tf.sum(tf.mul(small, [0.2989, 0.5870, 0.1140]), 3, true);
    return net.execute(tf.mul(tf.sub(grey, 0.5), 2));
  });
  return async (pixels, height, width, cropped) => {
    const image = tf.tensor3d(pixels, [height, width, 3], 'int32');
    let said = null;
    if (cropped) {
      const out = crop(image);
      said = Array.from(await out.data());
      out.dispose();
    } else {
      const { face } = await it.detect(tf.expandDims(image, 0));
      const best = face.sort((a, b) => b.box[2] * b.box[3] - a.box[2] * a.box[3])[0];
      const shares = best?.emotion && Object.fromEntries(best.emotion.map((e) => [e.emotion, e.score]));
      said = shares ? order.map((k) => shares[k] ?? 0) : null;
      if (said) { const total = said.reduce((a, b) => a + b, 0); said = said.map((v) => v / total); }
    }
    image.dispose();
    return said;
  };
}

const ask = await (name === 'human' ? human() : faceApi());
let held = Buffer.alloc(0), head = null;
for await (const part of process.stdin) {
  held = Buffer.concat([held, part]);
  for (;;) {
    if (head === null) {
      const end = held.indexOf(10);
      if (end < 0) break;
      head = JSON.parse(held.subarray(0, end).toString());
      held = held.subarray(end + 1);
    }
    const bytes = head.height * head.width * 3;
    if (held.length < bytes) break;
    log(JSON.stringify(await ask(new Uint8Array(held.subarray(0, bytes)), head.height, head.width, head.cropped)));
    held = held.subarray(bytes);
    head = null;
  }
}
